"""Mean and variance whose second derivatives are right."""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf

_patching = threading.RLock()


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Lets normalisation layers that are traced inside have exact second derivatives.

    `tf.nn.moments`, which Keras' normalisation layers call, stops the derivative at
    the mean inside the variance. The first derivative of the variance through its
    mean is zero, so that gradients are right; the second is not zero, and is lost.
    While this context lasts, `tf.nn.moments` goes through the mean.
    """
    with _patching:
        before = tf.nn.moments
        tf.nn.moments = _moments
        try:
            yield
        finally:
            tf.nn.moments = before


def _moments(x, axes, shift=None, keepdims=False, name=None):
    """As `tf.nn.moments`, whose arguments it has."""
    wide = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(wide - mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
