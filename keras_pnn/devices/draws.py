"""Draw the same random numbers in eager mode, in graphs and under XLA."""

import math
import zlib

import tensorflow as tf


def folded(seed, purpose: str, index: int | None = None) -> tf.Tensor:
    """Returns a separate seed for a purpose, and for an index within it."""
    fold_in = tf.random.experimental.stateless_fold_in
    code = zlib.crc32(purpose.encode()) & 0x7FFFFFFF
    found = fold_in(seed, code, alg="philox")
    return found if index is None else fold_in(found, index, alg="philox")


def standard_normal(shape: tuple[int, ...], seed, dtype) -> tf.Tensor:
    """Returns standard normal numbers, the same in eager mode, in graphs and under XLA.

    They differ only by rounding. XLA draws other floats than TensorFlow, but the same
    whole numbers, which are transformed here (Box and Muller).
    """
    wide = tf.as_dtype(dtype) if tf.as_dtype(dtype).size > 4 else tf.float32
    bits = whole_numbers((2, *shape), seed)
    # Never 0, whose logarithm is infinite.
    uniform = (tf.cast(bits, wide) + 0.5) * 2.0**-32
    radius = tf.sqrt(-2 * tf.math.log(uniform[0]))
    return tf.cast(radius * tf.cos(2 * math.pi * uniform[1]), dtype)


def whole_numbers(shape, seed) -> tf.Tensor:
    """Returns random uint32, the same under XLA as without."""
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype="uint32", alg="philox"
    )


def uniform_numbers(shape: tuple[int, ...], seed) -> tf.Tensor:
    """Returns uniform float32 numbers above 0 and below 1, the same under XLA."""
    # 23 bits, so that float32 holds neither 0 nor 1.
    bits = tf.bitwise.right_shift(whole_numbers(shape, seed), 9)
    return (tf.cast(bits, "float32") + 0.5) * 2.0**-23
