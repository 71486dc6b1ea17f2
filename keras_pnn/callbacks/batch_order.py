"""Keep the order of the data the same in every run of `fit`."""

import keras


class BatchOrder(keras.callbacks.Callback):
    """Ties the order of a `keras_pnn.datasets.Batches` to the epoch of `fit`.

    With it, epoch `e` sees the same batches in the same order in every run, also in
    one resumed by `keras.callbacks.BackupAndRestore` or `initial_epoch`. Without it
    the batches count epochs by themselves, from 0.

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

    def __init__(self, batches):
        super().__init__()
        if not callable(getattr(batches, "check_order", None)):
            raise ValueError(
                "Argument `batches` must be a `keras_pnn.datasets.Batches`. "
                f"Received: batches={batches!r}"
            )
        self.batches = batches

    def on_train_begin(self, logs=None):
        steps = self.params.get("steps")
        if steps != len(self.batches):
            raise ValueError(
                "BatchOrder needs epochs of the whole data set "
                f"({len(self.batches)} batches): leave `steps_per_epoch` out, and "
                f"pass `batches` itself to `fit`. Received: steps_per_epoch={steps}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batches.check_order()
