"""A training run that is killed goes on as if nothing had happened."""

import signal

import numpy as np
from models import run_script

SCRIPT = """
    import os, sys
    import numpy as np
    import keras
    import keras_pnn as pnn

    folder, kill = sys.argv[1:]
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
        h = keras.layers.Dropout(0.4)(keras.layers.BatchNormalization()(h))
        model = keras.Model(inputs, pnn.layers.MRRBank(3)(h))
        batches = pnn.datasets.Batches(x, y, batch_size=4, seed=3)
        noise = pnn.Variation(resonance_shift=0.05)
        model = pnn.SATModel(model, rho=0.2, ascent="asam", variation=noise)
        drift = pnn.callbacks.DriftInjection(
            "temperature", pnn.drift.RandomWalk(std=0.3))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.02), loss, run_eagerly=True)
        model.fit(batches, epochs=3, verbose=0, callbacks=[*callbacks, drift])
        return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]

    checkpoint = pnn.callbacks.Checkpoint(folder + "/state", every=2)
    np.savez(folder + "/resumed.npz", *train(checkpoint, Watch()))
    np.savez(folder + "/uninterrupted.npz", *train())
"""


def epochs_of(run):
    return [t for t in run.stdout.splitlines() if t.startswith("EPOCH")]


def test_a_killed_run_resumes_exactly(tmp_path):
    killed = run_script(SCRIPT, tmp_path, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert epochs_of(killed) == ["EPOCH 0", "EPOCH 1"]
    again = run_script(SCRIPT, tmp_path, "never")
    assert again.returncode == 0, again.stderr[-2000:]
    assert epochs_of(again) == ["EPOCH 1", "EPOCH 2"]
    resumed = np.load(tmp_path / "resumed.npz")
    uninterrupted = np.load(tmp_path / "uninterrupted.npz")
    assert resumed.files == uninterrupted.files and len(resumed.files) > 10
    for name in resumed.files:
        np.testing.assert_array_equal(resumed[name], uninterrupted[name])
