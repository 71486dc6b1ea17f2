"""Tie the order of batches to the epoch of `fit`."""

import keras

from keras_pnn import _checks
from keras_pnn.datasets import Batches


class BatchOrder(keras.callbacks.Callback):
    """Ties the order of a `keras_pnn.datasets.Batches` to the epoch of `fit`.

    With it, epoch `e` sees the same batches in the same order in every run, also in
    one resumed by `keras.callbacks.BackupAndRestore` or `initial_epoch`. Without it the
    batches count epochs themselves, from 0. `SATModel`, `PATModel` and `DATModel` add
    it automatically; other Keras models need it.

    Args:
        batches: The `keras_pnn.datasets.Batches` given to `fit`.

    Raises:
        ValueError: If `batches` is something else. When training begins: if
            `steps_per_epoch` differs from `len(batches)`. During training: if `fit`
            shuffles the batches, which `shuffle=False` turns off.

    Example:

    ```python
    batches = keras_pnn.datasets.Batches(x, y, batch_size=64, seed=0)
    model.fit(batches, epochs=10, shuffle=False, callbacks=[
        keras_pnn.callbacks.BatchOrder(batches),
        keras.callbacks.BackupAndRestore("backup"),
    ])
    ```
    """

    def __init__(self, batches: Batches):
        super().__init__()
        if not isinstance(batches, Batches):
            expected = "a `keras_pnn.datasets.Batches`"
            raise _checks.error("batches", expected, _checks.short(batches))
        self.batches = batches

    def on_train_begin(self, logs=None):
        steps = self.params.get("steps")
        if steps != len(self.batches):
            raise ValueError(
                "The order of a `Batches` is that of whole epochs "
                f"({len(self.batches)} batches): leave `steps_per_epoch` out, and "
                f"pass `batches` itself to `fit`. Received: steps_per_epoch={steps}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batches.check_order()
