"""Detection: the square law, shot noise, and quantisation by converters."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.physics._tensors import (
    TensorLike,
    as_tensors,
    check,
    check_not_nan,
    check_positive,
    concrete,
)

# Mean counts below it are drawn from the exact distribution.
_MANY = 10.0
# Bisection from here reaches 63: a higher count has a probability below 1e-28.
_STEP = 32.0


def intensity(field: TensorLike) -> tf.Tensor:
    """The square law of a photodiode: `re**2 + im**2`.

    Phase is lost. The gradient is that of the polynomial, so that it is 0, and not
    NaN as that of `abs`, in the dark.

    Args:
        field: Complex or real tensor of any shape. Amplitudes in the square root
            of the unit of intensity.

    Returns:
        Float tensor of the shape of `field`: float64 for a complex128 or float64
        field, float32 for all others.

    Example:

    >>> intensity(np.array([3 + 4j, 1j, 0])).numpy()
    array([25.,  1.,  0.])
    """
    if not hasattr(field, "dtype"):
        # Python numbers have no precision of their own.
        wide = keras.config.floatx() == "float64"
        field = np.asarray(field)
        if field.dtype.kind == "c":
            field = field.astype("complex128" if wide else "complex64")
        elif field.dtype.kind == "f":
            field = field.astype("float64" if wide else "float32")
    if "complex" not in keras.backend.standardize_dtype(field.dtype):
        (field,) = as_tensors(field)
        return field * field
    field = tf.convert_to_tensor(field)
    real, imaginary = tf.math.real(field), tf.math.imag(field)
    return real * real + imaginary * imaginary


def balanced(plus: TensorLike, minus: TensorLike) -> tf.Tensor:
    """The current of two photodiodes in series: the difference of intensities.

    Each diode counts its own photons, so shot noise is drawn on `plus` and on
    `minus`, before the difference.

    Args:
        plus: Float tensor. Intensity on the diode that adds.
        minus: Float tensor. Intensity on the diode that subtracts; broadcast
            with `plus`.

    Returns:
        Float tensor of the broadcast shape.

    Raises:
        ValueError: If a value is complex, a field in place of an intensity.

    Example:

    >>> balanced(intensity(np.array([1.0, 2.0j])), np.array([0.5, 4.0])).numpy()
    array([0.5, 0. ])
    """
    plus, minus = as_tensors(plus, minus)
    return plus - minus


def shot_noise(intensity: TensorLike, photons: TensorLike, seed) -> tf.Tensor:
    """Counts photons: `k / photons` with `k ~ Poisson(intensity * photons)`.

    Mean and variance are `intensity` and `intensity / photons`. Each count is the
    Poisson quantile of one normal draw: exact for mean counts below 10, and by the
    expansion of the reference from there on, where counts are off by 1 in 0.25 % of
    draws at a mean of 10, and in fewer above (but for rounding).

    The gradient is straight-through: 1 with respect to `intensity`, none with
    respect to `photons`. The noise that grows with the root of the intensity is
    in the value only.

    A pure function, which runs under `jit_compile` and `tf.vectorized_map`, over
    intensities, seeds or both. Elements that share a seed share their draws: under
    `tf.vectorized_map` with one seed, all see the same noise. XLA draws other
    numbers than TensorFlow without it from the same seed.

    Args:
        intensity: Float tensor of any shape, not negative.
        photons: Float tensor. Mean number of detected photons per unit of
            intensity, broadcast with `intensity`.
        seed: Two integers, or an integer tensor of shape (2,).

    Returns:
        Float tensor of the broadcast shape. NaN where the intensity is negative
        or NaN, if that is not known eagerly.

    Raises:
        ValueError: If a value known eagerly is negative or not finite, if
            `photons` is not positive and finite, or if `seed` is not two integers.

    Example:

    >>> x = np.array([0.0, 0.5, 2.0])
    >>> np.round(shot_noise(x, photons=1e12, seed=(1, 2)), 3)
    array([0. , 0.5, 2. ])

    Reference:

    - Giles, ACM Trans. Math. Softw. 42, 7 (2016), doi:10.1145/2699466: the normal
      expansion of the quantile to second order.
    """
    check(
        "intensity",
        intensity,
        lambda v: np.isfinite(v) & (v >= 0),
        "finite and not negative",
    )
    check_positive("photons", photons)
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
    """Poisson quantiles for small means, by bisection of the exact distribution.

    A loop of fixed length: XLA compiles neither `stateless_poisson`, which never
    returns from a NaN, nor a loop whose end depends on what `tf.vectorized_map`
    stacks.
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
    """Poisson quantiles for large means (Giles 2016, Q_N2)."""
    root = tf.sqrt(tf.maximum(mean, tf.cast(_MANY, mean.dtype)))
    square = normal * normal
    shift = (2 + square) / 6 - normal * (2 + square) / (72 * root)
    return tf.maximum(tf.floor(mean + root * normal + shift), 0.0)


def _seed(seed):
    tensor = seed.value if isinstance(seed, keras.Variable) else seed
    try:
        tensor = tf.convert_to_tensor(tensor)
    except (TypeError, ValueError):
        tensor = None
    if tensor is None or not tensor.dtype.is_integer or tensor.shape != (2,):
        raise ValueError(f"`seed` must be two integers. Received: seed={seed!r}")
    # XLA takes no other seeds.
    return tf.cast(tensor, tf.int32)


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
