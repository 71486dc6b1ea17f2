"""Detection: quantisation by converters."""

import numpy as np
import tensorflow as tf

from keras_pnn.physics._tensors import (
    TensorLike,
    as_tensors,
    check,
    check_not_nan,
    concrete,
)


def quantize(x: TensorLike, bits: int, low: TensorLike, high: TensorLike) -> tf.Tensor:
    """Rounds to the nearest level of a uniform converter, and clips.

    The `2**bits` levels are `low + k * (high - low) / (2**bits - 1)`: both ends
    are levels, and each level is the middle of its step (mid-tread). The
    gradient is straight-through: 1 inside the range (the ends included), 0
    outside.

    Args:
        x: Float tensor of any shape, in the unit of `low` and `high`.
        bits: Integer from 1 to 24. Resolution.
        low: Float tensor. Lowest level.
        high: Float tensor. Highest level, above `low`.

    Returns:
        Float tensor of the shape of `x`.

    Raises:
        ValueError: If `bits` is not an integer from 1 to 24, if a value known
            eagerly is NaN, or if `low` is not finite and below `high`.

    Example:

    >>> quantize(np.array([-0.2, 0.3, 0.9]), bits=2, low=0.0, high=1.0).numpy()
    array([0.        , 0.33333333, 1.        ])

    Reference:

    - Bengio et al., arXiv:1308.3432: the straight-through estimator.
    """
    _check_converter(x, bits, low, high)
    x, low, high = as_tensors(x, low, high)
    inside = tf.minimum(tf.maximum(x, low), high)
    step = (high - low) / (2 ** int(bits) - 1)
    level = tf.minimum(low + step * tf.round((inside - low) / step), high)
    # The difference is exactly 0, so that the output is exactly a level.
    return tf.stop_gradient(level) + (inside - tf.stop_gradient(inside))


def _check_converter(x, bits, low, high):
    whole = isinstance(bits, (int, np.integer)) and not isinstance(bits, bool)
    if not whole or not 1 <= bits <= 24:
        raise ValueError(
            f"`bits` must be an integer from 1 to 24. Received: bits={bits!r}"
        )
    check_not_nan("x", x)
    check("low", low, np.isfinite, "finite")
    check("high", high, np.isfinite, "finite")
    bottom, top = concrete(low), concrete(high)
    if bottom is not None and top is not None and not np.all(bottom < top):
        raise ValueError(
            f"`low` must be below `high`. Received: low={low}, high={high}"
        )
