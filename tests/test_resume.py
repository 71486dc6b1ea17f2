"""A training run that is killed goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import keras_pnn

SCRIPT = """
    import os, sys
    import numpy as np
    import keras
    import keras_pnn as pnn

    kind, folder, out, kill = sys.argv[1:]
    sat = kind == "sat"
    x = np.random.default_rng(0).normal(size=(22, 4)).astype("float32")
    y = np.random.default_rng(1).integers(0, 3, 22)

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
            print("EPOCH", epoch)

        def on_train_batch_end(self, batch, logs=None):
            if kill == "kill" and (self.epoch, batch) == (1, 3):
                sys.stdout.flush()
                os.kill(os.getpid(), 9)

    def train(*callbacks):
        keras.utils.set_random_seed(5)
        inputs = keras.Input((4,))
        h = pnn.layers.MRRBank(5, activation="relu")(inputs)
        h = keras.layers.BatchNormalization()(h)
        if sat:
            h = keras.layers.Dropout(0.4)(h)
        model = keras.Model(inputs, pnn.layers.MRRBank(3)(h))
        batches = pnn.datasets.Batches(x, y, batch_size=4, seed=3)
        callbacks = [*callbacks, pnn.callbacks.BatchOrder(batches)]
        if sat:
            noise = pnn.Variation(resonance_shift=0.05)
            model = pnn.SATModel(model, rho=0.2, ascent="asam", variation=noise)
            walk = pnn.drift.RandomWalk(std=0.3)
            callbacks.append(pnn.callbacks.DriftInjection("temperature", walk))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.02), loss)
        model.fit(batches, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]

    resumed = train(keras.callbacks.BackupAndRestore(folder), Watch())
    uninterrupted = train()
    np.savez(out + "/resumed.npz", *resumed)
    np.savez(out + "/uninterrupted.npz", *uninterrupted)
"""


def train(kind, folder, kill):
    root = os.path.dirname(os.path.dirname(os.path.abspath(keras_pnn.__file__)))
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    arguments = [kind, str(folder / "backup"), str(folder), kill]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def epochs_of(run):
    return [t for t in run.stdout.splitlines() if t.startswith("EPOCH")]


@pytest.mark.parametrize("kind", ["sat", "plain"])
def test_a_killed_run_resumes_exactly(kind, tmp_path):
    killed = train(kind, tmp_path, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert epochs_of(killed) == ["EPOCH 0", "EPOCH 1"]
    again = train(kind, tmp_path, "never")
    assert again.returncode == 0, again.stderr[-2000:]
    assert epochs_of(again) == ["EPOCH 1", "EPOCH 2", "EPOCH 3"]
    resumed = np.load(tmp_path / "resumed.npz")
    uninterrupted = np.load(tmp_path / "uninterrupted.npz")
    assert resumed.files == uninterrupted.files and len(resumed.files) > 10
    for name in resumed.files:
        np.testing.assert_array_equal(resumed[name], uninterrupted[name])
