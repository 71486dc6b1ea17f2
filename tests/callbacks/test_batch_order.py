"""`Batches` whose epochs are those of `fit`."""

import keras
import numpy as np
import pytest

from keras_pnn import datasets
from keras_pnn.callbacks import BatchOrder


class Seen(keras.Model):
    """Keeps the first feature of each sample that it trains on."""

    def __init__(self):
        super().__init__()
        self.order = []
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale

    def train_step(self, data):
        self.order.append(np.asarray(data[0])[:, 0].astype(int).tolist())
        return super().train_step(data)


def seen_model():
    model = Seen()
    model.compile("sgd", "mse", run_eagerly=True)
    model.build((None, 1))
    return model


def numbered(n):
    return np.arange(n, dtype="float32")[:, None]


def expected(n, batch_size, epochs, seed=0):
    out = []
    for epoch in epochs:
        order = np.random.default_rng([seed, epoch]).permutation(n).tolist()
        out += [order[k : k + batch_size] for k in range(0, n, batch_size)]
    return out


def test_initial_epoch():
    batches = datasets.Batches(numbered(12), numbered(12), 4)
    model = seen_model()
    options = {"initial_epoch": 4, "epochs": 6, "shuffle": False, "verbose": 0}
    model.fit(batches, steps_per_epoch=3, callbacks=[BatchOrder(batches)], **options)
    assert model.order == expected(12, 4, [4, 5])


def test_a_resumed_run_sees_the_same_batches(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(self.model.order) == 8:
                raise RuntimeError("power cut")

    def fit(model, *callbacks):
        batches = datasets.Batches(numbered(12), numbered(12), 4)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [BatchOrder(batches), backup, *callbacks]
        model.fit(batches, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)

    with pytest.raises(RuntimeError, match="power cut"):
        fit(seen_model(), Crash())
    model = seen_model()
    fit(model)
    assert model.order == expected(12, 4, [2, 3])


def test_what_the_order_rules_out():
    batches = datasets.Batches(numbered(80), numbered(80), 4)
    for options, match in (({}, "shuffle=False"), ({"steps_per_epoch": 2}, "epoch=2")):
        with pytest.raises(ValueError, match=match):
            seen_model().fit(
                batches, verbose=0, callbacks=[BatchOrder(batches)], **options
            )
    with pytest.raises(ValueError, match="`batches`"):
        BatchOrder([1, 2])
