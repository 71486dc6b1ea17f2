"""Convolve complex images with real kernels, for several networks at once."""

import math

import numpy as np
import tensorflow as tf

# Up to this many pixels across, a row counts as one pixel of many channels: a matrix
# with the zeros written out is faster on a CPU than a convolution of few channels.
_DENSE_WIDTH = 8


def complex_kernel(parts: tf.Tensor) -> tf.Tensor:
    """Returns real kernels that act on real and imaginary channels as A + iB do.

    With inputs x + iy, outputs are (A∗x − B∗y) + i (B∗x + A∗y), where ∗ is the
    correlation of `keras.layers.Conv2D` with `padding="same"`. `parts` holds A and B on
    the second axis, (networks, 2, height, width, channels, filters); the kernels are
    [[A, B], [−B, A]] over the last two axes, with the real channels first in inputs and
    outputs.

    Reference:
        - Trabelsi et al., Deep Complex Networks, ICLR (2018), eq. 2
    """
    a, b = parts[:, 0], parts[:, 1]
    return tf.concat([tf.concat([a, b], -1), tf.concat([-b, a], -1)], -2)


def convolve(images, kernels, strides: int, transpose: bool) -> tf.Tensor:
    """Convolves the images of each network with its own kernel, from `complex_kernel`.

    Images are (networks or 1, batch, height, width, 2, channels), real and imaginary
    parts on the axis before the last. A transposed convolution, as that of
    `Conv2DTranspose`, makes them `strides` times larger.
    """
    networks, channels, filters = (kernels.shape[i] for i in (0, 3, 4))
    height, width = images.shape[2:4]
    factor = strides if transpose else 1 / strides
    rows, columns = (math.ceil(n * factor) for n in (height, width))
    if max(width, columns) <= _DENSE_WIDTH:
        kernels = _dense(kernels, width, strides, transpose)
        width, channels = 1, width * channels
    images = tf.reshape(images, (images.shape[0], -1, height, width, channels))
    # TensorFlow has no gradient of a grouped convolution on a CPU.
    each = tf.unstack(images) * (networks // images.shape[0])
    outputs = [
        _convolve(image, kernel, strides, transpose)
        for image, kernel in zip(each, tf.unstack(kernels), strict=True)
    ]
    shape = (networks, -1, rows, columns, 2, filters // 2)
    return tf.reshape(tf.stack(outputs), shape)


def _convolve(images, kernel, strides: int, transpose: bool) -> tf.Tensor:
    """A real convolution with `padding="same"`, or a transposed one."""
    if not transpose:
        return tf.nn.conv2d(images, kernel, strides, "SAME")
    batch, height, width, _ = tf.unstack(tf.shape(images))
    # A width of 1 means whole rows, which have no neighbours.
    wide = width if kernel.shape[1] == images.shape[2] == 1 else strides * width
    size = [batch, strides * height, wide, kernel.shape[3]]
    return tf.nn.conv2d_transpose(
        images, tf.transpose(kernel, (0, 1, 3, 2)), size, strides, "SAME"
    )


def _dense(kernels, width: int, strides: int, transpose: bool) -> tf.Tensor:
    """Kernels for images of width 1, whose channels are those of `width` pixels.

    Kernels (networks, height, taps, channels, filters) become (networks, height, 1,
    width · channels, width' · filters).
    """
    networks, height, taps, channels, filters = kernels.shape
    place = _placement(width, taps, strides, transpose)
    columns = place.shape[1]
    parts = tf.reshape(kernels, (networks, height, taps, channels * filters))
    place = tf.constant(place.reshape(width * columns, taps), kernels.dtype)
    shape = (networks, height, width, columns, channels, filters)
    matrices = tf.reshape(tf.matmul(place, parts), shape)
    matrices = tf.transpose(matrices, (0, 1, 2, 4, 3, 5))
    shape = (networks, height, 1, width * channels, columns * filters)
    return tf.reshape(matrices, shape)


def _placement(size: int, taps: int, strides: int, transpose: bool) -> np.ndarray:
    """Which tap leads from which input to which output, along one axis, as 0 and 1."""
    if transpose:
        return _placement(size * strides, taps, strides, False).transpose(1, 0, 2)
    outputs = math.ceil(size / strides)
    # The padding of TensorFlow's "SAME": the odd pixel comes last.
    before = max((outputs - 1) * strides + taps - size, 0) // 2
    source = strides * np.arange(outputs)[:, None] + np.arange(taps) - before
    return (np.arange(size)[:, None, None] == source).astype("float64")
