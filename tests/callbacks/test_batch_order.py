"""`Batches` whose epochs are those of `fit`."""

import keras
import pytest
from models import expected_order, numbered, seen_model

from keras_pnn import datasets
from keras_pnn.callbacks import BatchOrder


def test_initial_epoch():
    batches = datasets.Batches(numbered(12), numbered(12), 4)
    model = seen_model()
    options = {"initial_epoch": 4, "epochs": 6, "shuffle": False, "verbose": 0}
    model.fit(batches, steps_per_epoch=3, callbacks=[BatchOrder(batches)], **options)
    assert model.order == expected_order(12, 4, [4, 5])


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
    assert model.order == expected_order(12, 4, [2, 3])


def test_what_the_order_rules_out():
    batches = datasets.Batches(numbered(80), numbered(80), 4)
    for options, match in (({}, "shuffle=False"), ({"steps_per_epoch": 2}, "epoch=2")):
        with pytest.raises(ValueError, match=match):
            seen_model().fit(
                batches, verbose=0, callbacks=[BatchOrder(batches)], **options
            )
    with pytest.raises(ValueError, match="`batches`"):
        BatchOrder([1, 2])
