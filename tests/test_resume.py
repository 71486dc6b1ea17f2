"""A training run that is killed goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import keras_pnn

SCRIPT = """
    import os, signal, sys
    import numpy as np
    import keras
    import keras_pnn as pnn

    kind, folder, out, kill = sys.argv[1:]
    sat = kind == "sat"
    keras.utils.set_random_seed(5)
    x = np.random.default_rng(0).normal(size=(22, 4)).astype("float32")
    y = np.random.default_rng(1).integers(0, 3, 22)

    inputs = keras.Input((4,))
    h = pnn.layers.MRRBank(5, activation="relu")(inputs)
    h = keras.layers.BatchNormalization()(h)
    if sat:
        h = keras.layers.Dropout(0.4)(h)
    model = keras.Model(inputs, pnn.layers.MRRBank(3)(h))
    if sat:
        noise = pnn.Variation(resonance_shift=0.05)
        model = pnn.SATModel(model, rho=0.2, ascent="asam", noise_aware=noise)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    batches = pnn.datasets.Batches(x, y, batch_size=4, seed=3)

    class Kill(keras.callbacks.Callback):
        epoch = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
            if kill == "never" and folder != "none":
                print("EPOCH", epoch)

        def on_train_batch_end(self, batch, logs=None):
            if kill == "kill" and (self.epoch, batch) == (1, 3):
                os.kill(os.getpid(), 9)

    callbacks = [pnn.callbacks.BatchOrder(batches), Kill()]
    if sat:
        walk = pnn.drift.RandomWalk(std=0.3)
        callbacks.append(pnn.callbacks.DriftInjection("temperature", walk))
    if folder != "none":
        callbacks.append(keras.callbacks.BackupAndRestore(folder))
    model.fit(batches, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
    np.savez(out, *[v.numpy() for v in [*model.weights, *model.optimizer.variables]])
"""


def train(kind, folder, out, kill):
    root = os.path.dirname(os.path.dirname(os.path.abspath(keras_pnn.__file__)))
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    arguments = [str(a) for a in (kind, folder, out, kill)]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("kind", ["sat", "plain"])
def test_a_killed_run_resumes_exactly(kind, tmp_path):
    folder, resumed, whole = (tmp_path / n for n in ("backup", "one.npz", "two.npz"))
    with ThreadPoolExecutor() as pool:
        uninterrupted = pool.submit(train, kind, "none", whole, "never")
        killed = train(kind, folder, resumed, "kill")
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert not resumed.exists()
        again = train(kind, folder, resumed, "never")
        assert again.returncode == 0, again.stderr[-2000:]
        result = uninterrupted.result()
    assert result.returncode == 0, result.stderr[-2000:]
    # It did resume: epoch 0 was not run again.
    epochs = [t for t in again.stdout.splitlines() if t.startswith("EPOCH")]
    assert epochs == ["EPOCH 1", "EPOCH 2", "EPOCH 3"]
    with np.load(resumed) as one, np.load(whole) as other:
        assert one.files == other.files and len(one.files) > 10
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
