"""Replace TensorFlow functions whose second derivative is missing or wrong."""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf

from keras_pnn._keras.lending import lent

_patching = threading.RLock()


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Gives layers that are traced inside exact second derivatives.

    Three functions that Keras layers call have correct gradients, but missing or wrong
    second derivatives, and are replaced until the block ends:

    - `tf.nn.moments`, in normalisations, stops the gradient at the mean inside the
      variance. The first derivative of the variance through its mean is zero; the
      second is not.
    - `tf.image.resize`, in `Resizing` and `UpSampling2D`: the derivative of its
      gradient is lost, or not implemented in TensorFlow.
    - `tf.nn.max_pool` with as many outputs as inputs: in a graph, the kernel for the
      derivative of its gradient may overwrite what it reads.
    """
    pooling = {"moments": _moments, "max_pool": _max_pool}
    with _patching, lent(tf.nn, pooling), lent(tf.image, {"resize": _resize}):
        yield


def _moments(x, axes, shift=None, keepdims=False, name=None):
    """Computes mean and variance; takes the arguments of `tf.nn.moments`."""
    wide = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(wide - mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


_tf_max_pool = tf.nn.max_pool
_tf_resize = tf.image.resize


def _max_pool(input, ksize, strides, padding, data_format=None, name=None):
    """Pools with explicit padding; takes the arguments of `tf.nn.max_pool`."""
    x = tf.convert_to_tensor(input)
    sizes, steps = (_spatial(value, x.shape.rank) for value in (ksize, strides))
    last = data_format is None or data_format.endswith("C")
    if padding == "SAME" and last and sizes and steps and set(steps) == {1}:
        # The kernel's outputs then differ in size from its inputs.
        margins = [((size - 1) // 2, size // 2) for size in sizes]
        x = tf.pad(x, [(0, 0), *margins, (0, 0)], constant_values=x.dtype.min)
        padding = "VALID"
    if padding == "VALID" and sizes and steps and {*sizes, *steps} == {1}:
        return x
    return _tf_max_pool(x, ksize, strides, padding, data_format, name)


def _spatial(value, rank) -> list | None:
    """Returns a window's sizes along the axes between batch and channels."""
    if rank is None:
        return None
    value = [value] if isinstance(value, int) else list(value)
    if len(value) == rank:
        value = value[1:-1]
    return value * (rank - 2) if len(value) == 1 else value


def _resize(
    images,
    size,
    method="bilinear",
    preserve_aspect_ratio=False,
    antialias=False,
    name=None,
):
    """Resizes by matrix products; takes the arguments of `tf.image.resize`.

    Resizing is linear in the image, and separable: a matrix for each of two axes.
    """
    images = tf.convert_to_tensor(images)
    if preserve_aspect_ratio or not images.dtype.is_floating:
        return _tf_resize(images, size, method, preserve_aspect_ratio, antialias, name)
    # Half precision is resized in single precision.
    wide = images if images.dtype == tf.float64 else tf.cast(images, tf.float32)
    shape = tf.shape(images)
    for axis, equation in ((-3, "oi,...ijc->...ojc"), (-2, "oj,...ijc->...ioc")):
        length = images.shape[axis] or shape[axis]
        # The columns of the matrix are the images of the unit vectors.
        units = tf.eye(length)[tf.newaxis, :, tf.newaxis, :]
        columns = _tf_resize(units, (size[axis + 3], 1), method, antialias=antialias)
        matrix = tf.cast(columns[0, :, 0, :], wide.dtype)
        wide = tf.einsum(equation, matrix, wide)
    return tf.cast(wide, images.dtype) if method == "nearest" else wide
