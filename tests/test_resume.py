"""A training run that is killed goes on as if nothing had happened."""

import signal
import textwrap

import numpy as np
from models import run_script

DEFINITIONS = """
    import os, sys
    import numpy as np
    import keras
    import keras_pnn as pnn

    x = np.random.default_rng(0).normal(size=(22, 4)).astype("float32")
    y = np.random.default_rng(1).integers(0, 3, 22)

    class Watch(keras.callbacks.Callback):
        def __init__(self, kill):
            super().__init__()
            self.kill, self.epochs = kill, []

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs.append(epoch)

        def on_train_batch_end(self, batch, logs=None):
            if self.kill and (self.epochs[-1], batch) == (1, 3):
                print("EPOCHS", self.epochs, flush=True)
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

    def checkpoint(folder):
        return pnn.callbacks.Checkpoint(folder + "/state", every=2)
"""
KILLED = (
    DEFINITIONS
    + """
    train(checkpoint(sys.argv[1]), Watch(kill=True))
"""
)


def test_a_run_killed_in_another_process_resumes_exactly(tmp_path):
    killed = run_script(KILLED, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert "EPOCHS [0, 1]" in killed.stdout
    here = {}
    exec(textwrap.dedent(DEFINITIONS), here)
    watch = here["Watch"](kill=False)
    resumed = here["train"](here["checkpoint"](str(tmp_path)), watch)
    assert watch.epochs == [1, 2]
    uninterrupted = here["train"]()
    assert len(resumed) == len(uninterrupted) > 10
    for one, other in zip(resumed, uninterrupted, strict=True):
        np.testing.assert_array_equal(one, other)
