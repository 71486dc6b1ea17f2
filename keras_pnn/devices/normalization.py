"""Batch normalisation of a device: with which statistics it normalises."""

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _keras

MODES = ("frozen", "batch", "reestimated")


def check_mode(mode: str, calibration) -> None:
    """Raises ValueError for an unknown mode, or calibration data that do not fit it."""
    if mode not in MODES:
        raise ValueError(
            f"`batch_norm` must be one of {', '.join(map(repr, MODES))}. "
            f"Received: {mode!r}"
        )
    if (mode == "reestimated") != (calibration is not None):
        given = "none" if calibration is None else "calibration inputs"
        raise ValueError(
            "`calibration` must be given with batch_norm='reestimated', and with that "
            f"alone. Received: batch_norm={mode!r} and {given}"
        )


def checked_calibration(calibration, x):
    """Returns calibration inputs as arrays like those of `x`, in any number.

    Raises:
        ValueError: there is none, they are built otherwise than `x`, have samples of
            other shapes, differ in length, or hold NaN or infinity.
    """
    arrays = keras.tree.map_structure(np.asarray, calibration)
    try:
        keras.tree.assert_same_structure(arrays, x)
        shapes = [(a.shape, b.shape) for a, b in _pairs(arrays, x)]
        fits = all(len(a) and a[1:] == b[1:] for a, b in shapes)
    except ValueError:
        fits = False
    if not fits:
        expected = keras.tree.map_structure(lambda a: ("samples", *a.shape[1:]), x)
        raise ValueError(
            f"`calibration` must be inputs like `x`, of shape {_text(expected)}. "
            f"Received: {_text(keras.tree.map_structure(np.shape, arrays))}"
        )
    lengths = {len(a) for a in keras.tree.flatten(arrays)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "`calibration` must hold at least one sample, as many in all inputs. "
            f"Received: lengths {sorted(lengths)}"
        )
    for array in keras.tree.flatten(arrays):
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise ValueError("`calibration` must be finite. Received: NaN or infinity")
    return arrays


def _pairs(a, b):
    return zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True)


def _text(shapes) -> str:
    return str(shapes).replace("'", "")


def even_parts(samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of as few batches as needed, in sizes 1 apart at most.

    A short last batch would have poor statistics of its own.
    """
    count = -(-samples // batch_size)
    edges = [i * samples // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def batch_norm_layers(model) -> list[keras.layers.BatchNormalization]:
    """Returns the model's `BatchNormalization` layers, wrapped or not, in order."""
    kind = keras.layers.BatchNormalization
    return [la for la in _keras.flat_layers(model) if isinstance(la, kind)]


def moments(layer, inputs, mask=None):
    """(count, mean, variance) of a batch, over all axes but the layer's own.

    Args:
        layer: a `BatchNormalization` layer.
        inputs: its inputs.
        mask: booleans in the inputs' shape without the last axis, or `None`.

    Returns:
        The number of values that each channel has, a scalar; mean and variance
        (channels,), of the values themselves (not corrected for their number).
    """
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    inputs = tf.cast(inputs, dtype)
    rank = inputs.shape.rank
    axes = [i for i in range(rank) if i != layer.axis % rank]
    if mask is None:
        # A float, which XLA has on every device.
        size = tf.reduce_prod([tf.cast(tf.shape(inputs)[i], dtype) for i in axes])
        mean, variance = tf.nn.moments(inputs, axes)
        return size, mean, variance
    weights = tf.cast(mask, dtype)[..., None] * tf.ones_like(inputs)
    count = tf.reduce_sum(weights, axes)
    safe = tf.maximum(count, 1.0)
    mean = tf.reduce_sum(weights * inputs, axes) / safe
    shape = [1] * rank
    shape[layer.axis % rank] = -1
    distance = tf.math.squared_difference(inputs, tf.reshape(mean, shape))
    return count[0], mean, tf.reduce_sum(weights * distance, axes) / safe


@contextlib.contextmanager
def own_statistics(layers: Sequence) -> Iterator[list[list]]:
    """Lets layers normalise each batch with its own mean and variance.

    Only inside a `keras.StatelessScope`, which notes what is assigned to the layers'
    moving statistics. Nothing else of the layers is in training: their momentum,
    `trainable` and renormalisation play no part, and other layers are as they were.

    Args:
        layers: `BatchNormalization` layers.

    Yields:
        A list for each layer, to which each call adds what `moments` returns.
    """
    found: list[list] = [[] for _ in layers]
    before = [vars(layer).get("call") for layer in layers]
    try:
        for layer, calls in zip(layers, found, strict=True):
            # In the instance's dictionary, past Keras' tracking of attributes.
            vars(layer)["call"] = _normalizing(layer, calls)
        yield found
    finally:
        for layer, call in zip(layers, before, strict=True):
            if call is None:
                del vars(layer)["call"]
            else:
                vars(layer)["call"] = call


def _normalizing(layer, calls):
    original = layer.call
    signature = inspect.signature(original)

    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        inputs, mask = bound.args[0], bound.arguments.get("mask")
        count, mean, variance = moments(layer, inputs, mask)
        calls.append((count, mean, variance))
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
        if "training" in signature.parameters:
            bound.arguments["training"] = False
        return original(*bound.args, **bound.kwargs)

    return call


def pooled(counts, means, variances) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all values, from those of their parts.

    Args:
        counts: numbers of values, (parts, devices).
        means: (parts, devices, channels).
        variances: (parts, devices, channels).

    Returns:
        Mean and variance, (devices, channels): the variance inside the parts and
        that between them.
    """
    counts, means, variances = (
        np.asarray(a, "float64") for a in (counts, means, variances)
    )
    share = (counts / np.maximum(counts.sum(0), 1))[..., None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)
