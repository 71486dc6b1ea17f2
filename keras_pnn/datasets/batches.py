"""Batch samples in an order that is a function of seed, epoch and step."""

import math
import threading

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn._display import Brief


class Batches(Brief, keras.utils.PyDataset):
    """Shuffled batches in an order that depends on (seed, epoch, step) alone.

    Batch `k` of epoch `e` holds the samples
    `np.random.default_rng([seed, e]).permutation(n)[k * batch_size:][:batch_size]`.
    A sweep over models thus compares them on the same batches, and a resumed run
    continues with the batches of an uninterrupted one.

    `fit` of `SATModel`, `PATModel` and `DATModel` needs nothing else. Other Keras
    models need `keras_pnn.callbacks.BatchOrder`, and `shuffle=False`: by default `fit`
    reshuffles a `PyDataset` with Python's global random state, which raises an error.

    Args:
        x: Array of shape `(n, ...)`, or a tuple or dict of them, which may be nested.
        y: Like `x`, with the same `n`; or `None`.
        batch_size: Samples per batch.
        seed: Non-negative integer.
        sample_weight: Array of shape `(n,)`, or a structure like `y`; or `None`.
        drop_remainder: Whether to omit a last batch that is not full.

    Attributes:
        epoch: The epoch that indexing refers to. `BatchOrder` and our trainers set it;
            without them, each pass of `fit` (or of `evaluate`) adds 1.

    Raises:
        ValueError: If lengths differ or are 0, `batch_size` is less than 1, there is
            no full batch with `drop_remainder`, `x` holds NaN or infinity, or
            `sample_weight` is given without `y`.

    Example:

    ```python
    batches = keras_pnn.datasets.Batches(x, y, batch_size=64, seed=0)
    sat.fit(batches, epochs=10)
    model.fit(batches, epochs=10, shuffle=False,
              callbacks=[keras_pnn.callbacks.BatchOrder(batches)])
    ```
    """

    def __init__(
        self,
        x,
        y,
        batch_size: int,
        seed: int = 0,
        sample_weight=None,
        drop_remainder: bool = False,
    ):
        super().__init__()
        self.batch_size = _checks.integer("batch_size", batch_size, 1)
        self.seed = _checks.integer("seed", seed, 0)
        self.drop_remainder = bool(drop_remainder)
        if x is None:
            raise _checks.error("x", "an array, or a structure of arrays", x)
        if sample_weight is not None and y is None:
            raise _checks.error("sample_weight", "None without `y`", "an array")
        given = tuple(data for data in (x, y, sample_weight) if data is not None)
        self._data = keras.tree.map_structure(_array, given)
        shapes = [array.shape for array in keras.tree.flatten(self._data)]
        lengths = {shape[0] if shape else None for shape in shapes}
        if len(lengths) != 1 or not lengths - {None, 0}:
            raise ValueError(
                "Arguments `x`, `y` and `sample_weight` must hold non-empty arrays "
                f"of one length. Received: shapes {shapes}"
            )
        _checks.finite("x", self._data[0])
        self._samples = lengths.pop()
        rounding = math.floor if self.drop_remainder else math.ceil
        self._steps = rounding(self._samples / self.batch_size)
        if not self._steps:
            expected = f"at most {self._samples} samples with drop_remainder=True"
            raise _checks.error("batch_size", expected, self.batch_size)
        self.epoch = 0
        self._order = (None, None)
        self._running = self._skipped = False

    def __len__(self):
        return self._steps

    def batch(self, step: int, epoch: int) -> tuple:
        """Returns batch `step` of epoch `epoch`, independently of `fit`.

        Returns:
            `(x,)`, `(x, y)` or `(x, y, sample_weight)`.

        Raises:
            IndexError: If `step` is not from 0 to `len(self) - 1`.
        """
        if not 0 <= step < self._steps:
            raise IndexError(
                f"Steps go from 0 to {self._steps - 1}. Received: step={step}"
            )
        first = step * self.batch_size
        chosen = self.order(epoch)[first : first + self.batch_size]
        return keras.tree.map_structure(lambda a: a.take(chosen, axis=0), self._data)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the indices of the samples in the order of an epoch."""
        # A single read and a single assignment are safe with Keras' other thread.
        cached, order = self._order
        if cached != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(self._samples)
            self._order = (epoch, order)
        return order

    def __getitem__(self, index):
        # `fit` reads in a thread of tf.data; reads in its own thread are the user's.
        if self._running and threading.get_ident() != self._thread:
            if index > self._highest + 1:
                self._skipped = True
            self._highest = max(self._highest, index)
        return self.batch(index, self.epoch)

    def on_epoch_begin(self):
        self._running, self._skipped = True, False
        self._thread = threading.get_ident()
        self._highest = -1

    def on_epoch_end(self):
        # Keras also calls this before the first epoch.
        if not self._running:
            return
        self._running = False
        self.check_order()
        self.epoch += 1

    def check_order(self) -> None:
        """Raises a ValueError if batches were read out of order."""
        if self._skipped:
            self._running = self._skipped = False
            raise ValueError(
                "`fit` shuffles the batches of a PyDataset with Python's global random "
                "state, against the order by `seed`: pass `shuffle=False` to `fit`. "
                "Received: shuffle=True"
            )


def _array(data):
    """Returns a contiguous array, with floats in Keras' default dtype."""
    data = np.asarray(data)
    if np.issubdtype(data.dtype, np.floating):
        data = data.astype(keras.config.floatx(), copy=False)
    return np.ascontiguousarray(data) if data.ndim else data
