"""A training run that can be killed at any moment and goes on where it was."""

import os
import pathlib

import keras

from keras_pnn.training.resume import load_state, remove_state, save_state
from keras_pnn.training.trainer import Trainer


class Checkpoint(keras.callbacks.Callback):
    """Keeps weights, optimizer and position; a restarted `fit` goes on from there.

    Unlike `keras.callbacks.BackupAndRestore` it also keeps states in the middle of an
    epoch: the batches that are done are passed over, no update is lost or applied
    twice. Give `fit` batches in a known order: `pnn.datasets.Batches` with
    `pnn.callbacks.BatchOrder`, or arrays with `shuffle=False`. The logs of an epoch
    that was resumed are those of its rest.

    Args:
        folder: where the state is kept; removed when `fit` ends as it should.
        every: batches between two states, or `None` for the ends of epochs alone.

    Raises:
        ValueError: `every` is not a whole number of 1 or more. When training begins:
            the model is not one of this package's trainers (`SATModel`, `PATModel`,
            `DATModel`), or the folder holds no whole state of such a model.

    Example:

    ```python
    batches = pnn.datasets.Batches(x, y, batch_size=64, seed=0)
    online = pnn.SATModel(model, rho=0.3, device=bench)
    online.compile("adam", loss="mse")
    online.fit(batches, epochs=10, shuffle=False, callbacks=[
        pnn.callbacks.BatchOrder(batches),
        pnn.callbacks.Checkpoint("state", every=20),
    ])
    ```
    """

    def __init__(self, folder: str | os.PathLike, every: int | None = None):
        super().__init__()
        whole = isinstance(every, int) and not isinstance(every, bool)
        if every is not None and not (whole and every >= 1):
            raise ValueError(
                f"`every` must be a whole number of 1 or more. Received: {every!r}"
            )
        self.folder = pathlib.Path(folder)
        self.every = every
        self._first = (0, 0)
        self._epoch = 0

    def save_state(self, epoch: int, batches: int) -> pathlib.Path:
        """Writes the present state, for that position; returns the folder."""
        if epoch == self._first[0]:
            # What was passed over was done before.
            batches = max(batches, self._first[1])
        return save_state(self.model, self.folder, epoch, batches)

    def on_train_begin(self, logs=None):
        if not isinstance(self.model, Trainer):
            raise ValueError(
                "`Checkpoint` is for SATModel, PATModel and DATModel; for other models "
                "there is keras.callbacks.BackupAndRestore. Received: "
                f"{type(self.model).__name__}"
            )
        self._first = load_state(self.model, self.folder) or (0, 0)
        if self._first != (0, 0):
            self.model._initial_epoch = self._first[0]
            self.model.skip(self._first[1])

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        done = batch + 1
        passed_over = self._epoch == self._first[0] and done <= self._first[1]
        if self.every and done % self.every == 0 and not passed_over:
            self.save_state(self._epoch, done)

    def on_epoch_end(self, epoch, logs=None):
        save_state(self.model, self.folder, epoch + 1, 0)

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None
        remove_state(self.folder)
