"""Detect light: the square law, shot noise, and quantisation by converters."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike, as_tensors

# Counts with a mean below this are drawn from the exact distribution.
_MANY = 10.0
# Bisection with this first step reaches 63; a higher count has a probability below
# 1e-28.
_STEP = 32.0


def intensity(field: TensorLike) -> tf.Tensor:
    """Applies the square law of a photodiode, `re**2 + im**2`.

    The gradient is that of the polynomial: 0 in the dark, where `abs` would give NaN.

    Args:
        field: Complex or real tensor of any shape. Amplitudes in the square root
            of the unit of intensity.

    Returns:
        Float tensor of the shape of `field`, in float64 for a complex128 or float64
        field, in float32 for all others.

    Example:

    >>> intensity(np.array([3 + 4j, 1j, 0])).numpy()
    array([25.,  1.,  0.])
    """
    given = field if hasattr(field, "dtype") else np.asarray(field)
    if "complex" not in keras.backend.standardize_dtype(given.dtype):
        (field,) = as_tensors(field)
        return field * field
    if given is not field:
        # Python numbers have no precision of their own.
        wide = keras.config.floatx() == "float64"
        given = given.astype("complex128" if wide else "complex64")
    field = tf.convert_to_tensor(given)
    real, imaginary = tf.math.real(field), tf.math.imag(field)
    return real * real + imaginary * imaginary


def balanced(plus: TensorLike, minus: TensorLike) -> tf.Tensor:
    """Subtracts two intensities, as two photodiodes in series do.

    Each diode counts its own photons, so shot noise is drawn on `plus` and on
    `minus`, before the difference.

    Args:
        plus: Intensity on the diode that adds.
        minus: Intensity on the diode that subtracts.

    Returns:
        Float tensor, the difference.

    Raises:
        ValueError: If a value is complex, a field instead of an intensity.

    Example:

    >>> balanced(intensity(np.array([1.0, 2.0j])), np.array([0.5, 4.0])).numpy()
    array([0.5, 0. ])
    """
    plus, minus = as_tensors(plus, minus)
    return plus - minus


def shot_noise(intensity: TensorLike, photons: TensorLike, seed) -> tf.Tensor:
    """Draws photon counts, `k / photons` with `k ~ Poisson(intensity * photons)`.

    Mean and variance are `intensity` and `intensity / photons`. Each count is the
    Poisson quantile of one normal draw: exact for mean counts below 10. From 10 on it
    uses the expansion of the reference, where counts are off by 1 in 0.25 % of draws
    at a mean of 10, and in fewer above (apart from rounding).

    The gradient is straight-through: 1 with respect to `intensity`, `None` with
    respect to `photons`.

    The function is pure. It runs under `jit_compile` (with different draws) and under
    `tf.vectorized_map`, where elements that share a seed share their draws.

    Args:
        intensity: Intensity, 0 or more. In a graph, negative values give NaN.
        photons: Mean number of detected photons per unit of intensity, positive.
        seed: Two integers, or an integer tensor of shape (2,).

    Returns:
        Float tensor of the shape of `intensity`.

    Raises:
        ValueError: If `seed` is not two integers, or eagerly: `intensity` is negative,
            or `photons` is not positive.

    Example:

    >>> x = np.array([0.0, 0.5, 2.0])
    >>> np.round(shot_noise(x, photons=1e12, seed=(1, 2)), 3)
    array([0. , 0.5, 2. ])

    Reference:

    - Giles, ACM Trans. Math. Softw. 42, 7 (2016), doi:10.1145/2699466: the normal
      expansion of the quantile to second order.
    """
    _checks.not_negative("intensity", intensity)
    _checks.positive("photons", photons)
    seed = _seed(seed)
    intensity, photons = as_tensors(intensity, photons)
    mean = tf.stop_gradient(intensity * photons)
    # The second version of this op has no rule in `tf.vectorized_map` for seeds.
    normal = tf.raw_ops.StatelessRandomNormal(
        shape=tf.shape(mean), seed=seed, dtype=mean.dtype
    )
    counts = tf.where(mean < _MANY, _few(mean, normal), _many(mean, normal))
    counts = tf.where(mean >= 0, counts, tf.cast(math.nan, mean.dtype))
    noisy = tf.stop_gradient(counts / photons)
    # The difference is exactly 0, so that the output is exactly a count.
    return noisy + (intensity - tf.stop_gradient(intensity))


def _few(mean, normal):
    """Solves for Poisson quantiles of small means by bisection.

    The loop has a fixed length, since XLA compiles neither `stateless_poisson` (which
    hangs on NaN) nor, under `tf.vectorized_map`, a loop whose end depends on data.
    """
    small = mean < _MANY
    mean = tf.where(small, mean, tf.zeros_like(mean))
    uniform = tf.where(small, tf.math.erfc(-normal / math.sqrt(2)) / 2, 0.0)

    def halve(step, counts):
        # P(k < n) is the regularised incomplete gamma function Q(n, mean).
        below = tf.math.igammac(counts + step, mean)
        return step / 2, counts + tf.where(uniform > below, step, 0.0)

    start = (tf.constant(_STEP, mean.dtype), tf.zeros_like(mean))
    return tf.while_loop(lambda step, _: step >= 1, halve, start)[1]


def _many(mean, normal):
    """Expands Poisson quantiles for large means (Giles 2016, Q_N2)."""
    root = tf.sqrt(tf.maximum(mean, tf.cast(_MANY, mean.dtype)))
    square = normal * normal
    shift = (2 + square) / 6 - normal * (2 + square) / (72 * root)
    return tf.maximum(tf.floor(mean + root * normal + shift), 0.0)


def _seed(seed):
    try:
        tensor = tf.convert_to_tensor(seed)
    except (TypeError, ValueError):
        tensor = None
    if tensor is None or not tensor.dtype.is_integer or tensor.shape != (2,):
        raise _checks.error("seed", "two integers", _checks.short(seed))
    # XLA takes no other dtype of seeds.
    return tf.cast(tensor, tf.int32)


def quantize(x: TensorLike, bits: int, low: TensorLike, high: TensorLike) -> tf.Tensor:
    """Rounds to the nearest level of a uniform converter, and clips.

    The `2**bits` levels are `low + k * (high - low) / (2**bits - 1)` (mid-tread). The
    gradient is straight-through: 1 inside the range, the ends included, 0 outside.

    Args:
        x: Value to convert, in the unit of `low` and `high`; may be infinite.
        bits: Resolution, an integer from 1 to 24.
        low: Lowest level.
        high: Highest level, above `low`.

    Returns:
        Float tensor of levels, in the shape of `x`.

    Raises:
        ValueError: If `bits` is not an integer from 1 to 24, or eagerly: `x` is NaN, or
            `low` and `high` are not finite or not in order.

    Example:

    >>> quantize(np.array([-0.2, 0.3, 0.9]), bits=2, low=0.0, high=1.0).numpy()
    array([0.        , 0.33333333, 1.        ])

    Reference:

    - Bengio et al., arXiv:1308.3432: the straight-through estimator.
    """
    bits = _checks.integer("bits", bits, 1, 24)
    _checks.not_nan("x", x)
    _checks.tensor("low", low, np.isfinite, "finite")
    _checks.tensor("high", high, np.isfinite, "finite")
    bottom, top = _checks.concrete(low), _checks.concrete(high)
    if bottom is not None and top is not None:
        _checks.tensor("high - low", top - bottom, lambda v: v > 0, "positive")
    x, low, high = as_tensors(x, low, high)
    inside = tf.minimum(tf.maximum(x, low), high)
    step = (high - low) / (2**bits - 1)
    level = tf.minimum(low + step * tf.round((inside - low) / step), high)
    # The difference is exactly 0, so that the output is exactly a level.
    return tf.stop_gradient(level) + (inside - tf.stop_gradient(inside))
