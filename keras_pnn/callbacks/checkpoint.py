"""Save the state of a training run, so that it can be resumed after any batch."""

import math
import os
import pathlib

import keras

from keras_pnn import _checks, _keras
from keras_pnn.training.resume import (
    Position,
    load_state,
    metrics_of,
    pass_over,
    remove_state,
    save_state,
)
from keras_pnn.training.trainer import Trainer


class Checkpoint(keras.callbacks.Callback):
    """Saves weights, optimizer and position; a restarted `fit` continues from there.

    Unlike `keras.callbacks.BackupAndRestore` it also saves states in the middle of an
    epoch: a restarted `fit` skips the finished batches, loses or repeats no update, and
    continues the metrics of the epoch. Give `fit` batches in a known order:
    a `pnn.datasets.Batches`, or arrays with `shuffle=False`; and no `steps_per_epoch`,
    with which an epoch begins where the last one ended. List it after callbacks that
    change ρ or a rate at the end of an epoch, and before a
    `keras.callbacks.SwapEMAWeights(swap_on_epoch=True)`.

    Args:
        folder: where the state is kept, in one file; removed when `fit` ends normally.
        every: batches between two states, or `None` for the ends of epochs only.
            With `steps_per_execution` above 1, a state is saved after the execution in
            which it is due.

    Raises:
        ValueError: If `every` is not an integer ≥ 1. When training begins: if the model
            is not one of this package's trainers (`SATModel`, `PATModel`, `DATModel`),
            or the folder holds a damaged state, one of another model, or one whose
            finished batches `steps_per_execution` does not divide.

    Example:

    ```python
    batches = pnn.datasets.Batches(x, y, batch_size=64, seed=0)
    online = pnn.SATModel(model, rho=0.3, device=bench)
    online.compile(keras.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy")
    online.fit(batches, epochs=10,
               callbacks=[pnn.callbacks.Checkpoint("state", every=20)])
    ```
    """

    def __init__(self, folder: str | os.PathLike, every: int | None = None):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.every = _checks.optional(_checks.integer, "every", every, low=1)
        # Where the run was resumed; `None` before it begins.
        self._start: Position | None = None

    def set_model(self, model):
        super().set_model(model)
        self._start = None

    def on_train_begin(self, logs=None):
        if not isinstance(self.model, Trainer):
            raise ValueError(
                "`Checkpoint` is for SATModel, PATModel and DATModel; for other models "
                "there is keras.callbacks.BackupAndRestore. Received: "
                f"{type(self.model).__name__}"
            )
        start = load_state(self.model, self.folder) or Position()
        together = self.model.steps_per_execution
        if start.batches % together and start.batches != self.params.get("steps"):
            raise ValueError(
                "`steps_per_execution` must divide the batches that are done, as it "
                f"did when the state in {self.folder} was written. Received: "
                f"steps_per_execution={together} after {start.batches} batches"
            )
        self._start = start
        self._epoch, self._done, self._due = start.epoch, 0, False
        _keras.start_at(self.model, start.epoch or None)
        self._handle = _keras.wrap_step(self.model, "train", self._step)

    def _step(self, function, iterator):
        """Trains on the next batches, or skips those that are done."""
        start, together = self._start, self.model.steps_per_execution
        # Keras counts an execution of several steps in full, even if the last one of an
        # epoch has fewer.
        done = min(self._done + together, self.params.get("steps") or math.inf)
        if self._epoch == start.epoch and self._done < start.batches:
            logs = pass_over(self.model, iterator, together, start.metrics)
        else:
            logs = function(iterator)
            self._due = self.every and done // self.every > self._done // self.every
        self._done = done
        return logs

    def save_state(self) -> str:
        """Saves the present state; returns a note on its position."""
        if self._start is None:
            return f"The state in {str(self.folder)!r} is as it was."
        position = Position(self._epoch, self._done, metrics_of(self.model))
        if (self._epoch, self._done) <= (self._start.epoch, self._start.batches):
            # The skipped batches were done before.
            position = self._start
        save_state(self.model, self.folder, position)
        return (
            f"The model is saved as it was after {position.batches} batches of epoch "
            f"{position.epoch + 1}. To go on, pass "
            f"callbacks=[pnn.callbacks.Checkpoint({str(self.folder)!r})] and the same "
            "batches in the same order."
        )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._done = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        if self._due:
            self._due = False
            self.save_state()

    def on_epoch_end(self, epoch, logs=None):
        self._epoch, self._done = epoch + 1, 0
        self.save_state()

    def on_train_end(self, logs=None):
        self._handle.remove()
        self._start = None
        _keras.start_at(self.model, None)
        remove_state(self.folder)
