"""A training run that can be killed at any moment and goes on where it was."""

import os
import pathlib

import keras

from keras_pnn.training.resume import (
    batches_done,
    load_state,
    remove_state,
    save_state,
)
from keras_pnn.training.trainer import Trainer


class Checkpoint(keras.callbacks.Callback):
    """Keeps weights, optimizer and position; a restarted `fit` goes on from there.

    Unlike `keras.callbacks.BackupAndRestore` it also keeps states in the middle of an
    epoch: the batches that are done are passed over, no update is lost or applied
    twice, and the metrics of the epoch go on. Give `fit` batches in a known order:
    `pnn.datasets.Batches` with `pnn.callbacks.BatchOrder`, or arrays with
    `shuffle=False`.

    Args:
        folder: where the state is kept; removed when `fit` ends as it should.
        every: batches between two states, or `None` for the ends of epochs alone.
            With `steps_per_execution` above 1, after the execution in which the next
            one is due.

    Raises:
        ValueError: `every` is not a whole number of 1 or more. When training begins:
            the model is not one of this package's trainers (`SATModel`, `PATModel`,
            `DATModel`), or the folder holds no whole state of such a model, or one
            behind which no execution of `steps_per_execution` batches begins.

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
        self._first, self._metrics = (0, 0), []
        self._epoch = self._done = 0

    def save_state(self, epoch: int, batches: int, metrics: list | None = None):
        """Writes the present state, for that position; returns the folder."""
        if (epoch, batches) <= self._first:
            # What was passed over was done before.
            (epoch, batches), metrics = self._first, self._metrics
        return save_state(self.model, self.folder, epoch, batches, metrics)

    def on_train_begin(self, logs=None):
        if not isinstance(self.model, Trainer):
            raise ValueError(
                "`Checkpoint` is for SATModel, PATModel and DATModel; for other models "
                "there is keras.callbacks.BackupAndRestore. Received: "
                f"{type(self.model).__name__}"
            )
        *first, self._metrics = load_state(self.model, self.folder) or (0, 0, [])
        self._first = tuple(first)
        if self._first != (0, 0):
            self._check_begins(self._first[1])
            self.model._initial_epoch = self._first[0]
            self.model.skip(self._first[1], self._metrics)

    def _check_begins(self, batches: int) -> None:
        together = self.model.steps_per_execution
        if batches % together and batches != self.params.get("steps"):
            raise ValueError(
                "`steps_per_execution` must divide the batches that are done, as it "
                f"did when the state in {self.folder} was written. Received: "
                f"steps_per_execution={together} after {batches} batches"
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._done = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        before, self._done = self._done, batches_done(self, batch)
        passed_over = self._epoch == self._first[0] and self._done <= self._first[1]
        due = self.every and self._done // self.every > before // self.every
        if due and not passed_over:
            self.save_state(self._epoch, self._done)

    def on_epoch_end(self, epoch, logs=None):
        save_state(self.model, self.folder, epoch + 1, 0)

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None
        remove_state(self.folder)
