"""Split data, in any form that Keras accepts, into batches of tensors."""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.devices.evaluation import rows_of


def batches(
    x, y, sample_weight, batch_size
) -> tuple[Callable[[], Iterator], int | None]:
    """Returns a function that yields (x, y, sample_weight) as tensors, and the size.

    The size is `None` for a data set, which has batches of its own.
    """
    if _checks.is_data_set(x):
        start = _checks.data_set_batches(x, y, sample_weight)
        return lambda: (keras.tree.map_structure(_tensor, b) for b in start()), None
    batch_size = _checks.integer("batch_size", batch_size, 1)
    # NaN in targets may mark what a loss ignores; the loss itself is checked.
    arrays = _checks.data(x, y, sample_weight, finite_targets=False)
    arrays = keras.tree.map_structure(_as_evaluated, arrays)
    length = _checks.sample_count(arrays[0])

    def iterate():
        for start in range(0, length, batch_size):
            yield rows_of(arrays, start, start + batch_size)

    return iterate, batch_size


def mean(
    start: Callable[[], Iterator], step: Callable, handing: Callable[[], list[str]]
) -> tuple[list, int]:
    """Returns size-weighted means of tensors over batches, and the number of samples.

    Args:
        start: as `batches` returns it.
        step: a function of x, y and sample_weight that returns tensors.
        handing: a function that returns the names of the layers that passed a state on,
            see `OverridingScope.handing`.
    """
    totals, samples = [], 0
    for batch in start():
        names = handing() if samples else []
        if names:
            raise ValueError(
                f"Layer {' and '.join(f'`{name}`' for name in names)} must not be "
                "stateful, or the data must be one batch: `evaluate` hands the state "
                "of one batch to the next, which an average over batches does not. "
                "Received: several batches. Give all samples in one batch, or build "
                "the layer with `stateful=False`"
            )
        size = _checks.sample_count(batch[0])
        parts = [size * part.numpy().astype("float64") for part in step(*batch)]
        totals = list(map(np.add, totals, parts)) if samples else parts
        samples += size
    if samples == 0:
        raise _checks.error("x", "at least one sample", "no samples")
    return [total / samples for total in totals], samples


def _as_evaluated(array):
    """Casts floating-point numbers as `evaluate` does."""
    if array is None or array.dtype.kind != "f":
        return array
    return array.astype(keras.config.floatx(), copy=False)


def _tensor(leaf):
    return None if leaf is None else tf.convert_to_tensor(leaf)
