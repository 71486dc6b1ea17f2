"""A data set in whatever form Keras takes it, as batches of tensors."""

import keras
import numpy as np
import tensorflow as tf


def batch_length(x):
    return int(next(a for a in keras.tree.flatten(x) if a is not None).shape[0])


def batches(x, y, sample_weight, batch_size):
    """Returns a function that starts a pass over the batches, and their size."""
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        return _dataset_batches(x, y, sample_weight), None
    whole = isinstance(batch_size, (int, np.integer)) and batch_size >= 1
    if not whole or isinstance(batch_size, bool):
        raise ValueError(
            f"batch_size must be a positive integer. Received: {batch_size!r}"
        )
    arrays = tuple(
        keras.tree.map_structure(lambda leaf, name=name: _array(leaf, name), data)
        for name, data in (("x", x), ("y", y), ("sample_weight", sample_weight))
    )
    if all(leaf is None for leaf in keras.tree.flatten(arrays[0])):
        raise ValueError(f"x must hold at least one array. Received: {x!r}")
    lengths = [len(a) for a in keras.tree.flatten(arrays) if a is not None]
    if len(set(lengths)) != 1:
        raise ValueError(
            "x, y and sample_weight must have the same number of samples. "
            f"Received: {', '.join(map(str, lengths))}"
        )
    if lengths[0] == 0:
        raise ValueError("x must hold at least one sample. Received: no samples")

    def iterate():
        for start in range(0, lengths[0], batch_size):
            part = slice(start, start + batch_size)
            yield keras.tree.map_structure(
                lambda a, part=part: _tensor(None if a is None else a[part]), arrays
            )

    return iterate, int(batch_size)


def _array(leaf, name):
    if leaf is None:
        return None
    if not hasattr(leaf, "shape") or len(leaf.shape) == 0:
        raise ValueError(
            f"{name} must be an array, a tuple, list or dict of arrays, or (for x) a "
            "tf.data.Dataset or keras.utils.PyDataset of batches. "
            f"Received: {leaf!r} (of type {type(leaf).__name__})"
        )
    array = np.asarray(leaf)
    if array.dtype.kind == "f":
        # As `evaluate` does with arrays.
        array = array.astype(keras.config.floatx(), copy=False)
    # Targets may mark what to ignore with NaN; the loss's value tells.
    if name != "y" and array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite. Received: "
            f"{np.count_nonzero(~np.isfinite(array))} values that are not"
        )
    return array


def _tensor(leaf):
    return leaf if leaf is None or tf.is_tensor(leaf) else tf.convert_to_tensor(leaf)


def _dataset_batches(x, y, sample_weight):
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ValueError(
                f"{name} must be None when x is a data set, whose batches hold it. "
                f"Received: {type(value).__name__}"
            )
    if isinstance(x, tf.data.Dataset):
        infinite = x.cardinality() == tf.data.INFINITE_CARDINALITY
    else:
        infinite = x.num_batches is None
    if infinite:
        raise ValueError(
            "x must be finite: take a number of batches first, as in `x.take(10)`. "
            f"Received: {x}"
        )

    def iterate():
        python = isinstance(x, keras.utils.PyDataset)
        batches = (x[index] for index in range(x.num_batches)) if python else x
        for batch in batches:
            yield keras.tree.map_structure(
                _tensor, keras.utils.unpack_x_y_sample_weight(batch)
            )

    return iterate
