"""Choose the statistics with which batch normalisation normalises on a device."""

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _keras


def check_mode(mode: str, calibration, x):
    """Checks the arguments of a `DeviceEvaluator`; returns `calibration` as arrays."""
    _checks.choice("batch_norm", mode, ("frozen", "batch", "reestimated"))
    if (mode == "reestimated") != (calibration is not None):
        given = "none" if calibration is None else "calibration inputs"
        raise ValueError(
            "Argument `calibration` must be given with batch_norm='reestimated', and "
            f"only then. Received: batch_norm={mode!r} and {given}"
        )
    if calibration is None:
        return None
    arrays = _checks.samples("calibration", calibration)
    shapes, wanted = (
        keras.tree.map_structure(lambda a: ("samples", *a.shape[1:]), part)
        for part in (arrays, x)
    )
    lengths = {len(a) for a in keras.tree.flatten(arrays)}
    if shapes != wanted or len(lengths) != 1 or 0 in lengths:
        expected = f"inputs like `x`, of shape {wanted} with at least one sample"
        received = keras.tree.map_structure(lambda a: a.shape, arrays)
        raise _checks.error("calibration", expected, received)
    _checks.finite("calibration", arrays)
    return arrays


def even_parts(samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the fewest batches, whose sizes differ by at most 1.

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
    """Returns (count, mean, variance) of a batch, over all axes but the layer's own.

    A mask has the inputs' shape without the last axis. The variance is not corrected
    for the count.
    """
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    inputs = tf.cast(inputs, dtype)
    rank = inputs.shape.rank
    axes = [i for i in range(rank) if i != layer.axis % rank]
    if mask is None:
        # As a float, which XLA supports on every device.
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
    """Lets `BatchNormalization` layers normalise each batch with its own statistics.

    It needs a `keras.StatelessScope`, which records what is assigned to the layers'
    moving statistics. Everything else is as in inference: momentum, `trainable` and
    renormalisation have no effect. Yields a list for each layer, to which each call
    adds what `moments` returns.
    """
    found: list[list] = [[] for _ in layers]
    with contextlib.ExitStack() as stack:
        for layer, calls in zip(layers, found, strict=True):
            call = _normalizing(layer, calls)
            stack.enter_context(_keras.replaced_call(layer, call))
        yield found


def _normalizing(layer, calls):
    original = layer.call
    signature = inspect.signature(original)

    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        inputs, mask = bound.args[0], bound.arguments.get("mask")
        calls.append(moments(layer, inputs, mask))
        _, mean, variance = calls[-1]
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
        if "training" in signature.parameters:
            bound.arguments["training"] = False
        return original(*bound.args, **bound.kwargs)

    return call


def pooled(counts, means, variances) -> tuple[np.ndarray, np.ndarray]:
    """Pools statistics of parts of the data to mean and variance, (devices, channels).

    Counts are (parts, devices), means and variances (parts, devices, channels).
    """
    counts, means, variances = (
        np.asarray(a, "float64") for a in (counts, means, variances)
    )
    share = (counts / np.maximum(counts.sum(0), 1))[..., None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)
