"""Convolve by slices and products, for kernels that differ between devices.

Inside `tf.vectorized_map`, TensorFlow supports neither a convolution whose kernel
differs per device nor `tf.image.extract_patches`.
"""

from typing import NamedTuple

import tensorflow as tf


class Axis(NamedTuple):
    """One axis of a convolution: sizes of image, outputs and kernel, and steps."""

    size: int
    outputs: int
    taps: int
    stride: int
    dilation: int

    def at(self, tap: int) -> slice:
        """Returns the pixels that one tap of the kernel meets."""
        start = tap * self.dilation
        return slice(start, start + (self.outputs - 1) * self.stride + 1, self.stride)


def output_size(size, kernel: int, stride: int, dilation: int, padding: str):
    """Returns the size of an axis after a convolution; `None` if it is unknown."""
    if size is None:
        return None
    if padding == "same":
        return -(-size // stride)
    outputs = (size - dilation * (kernel - 1) - 1) // stride + 1
    if outputs < 1:
        raise ValueError(
            "The kernel must fit into the image. "
            f"Received: size {size}, kernel {kernel}, dilation {dilation}"
        )
    return outputs


def padded(images, kernel_size, strides, dilation_rate, padding: str):
    """Pads images with zeros, if `padding` is `"same"`; returns them and both axes."""
    if None in images.shape[1:3]:
        raise ValueError(
            "Many devices at once need images of known height and width. "
            f"Received: shape {images.shape}"
        )
    geometry = zip(images.shape[1:3], kernel_size, strides, dilation_rate, strict=True)
    axes = [
        Axis(n, output_size(n, k, s, d, padding), k, s, d) for n, k, s, d in geometry
    ]
    if padding == "same":
        short = [max(a.at(a.taps - 1).stop - a.size, 0) for a in axes]
        pads = [(n // 2, n - n // 2) for n in short]
        images = tf.pad(images, [(0, 0), *pads, (0, 0)])
    return images, axes


def patches(images, axes):
    """Returns patches of padded images: (batch, new height, new width, fan_in)."""
    wide = _width_patches(images, axes)
    return tf.concat([wide[:, axes[0].at(i)] for i in range(axes[0].taps)], axis=-1)


def convolve(images, kernel, axes, groups: int):
    """Convolves padded images with a kernel of several groups."""
    parts = (tf.split(part, groups, axis=-1) for part in (images, kernel))
    outputs = [_convolve_group(*part, axes) for part in zip(*parts, strict=True)]
    return tf.concat(outputs, axis=-1)


def _width_patches(images, axes):
    """Returns patches along the width: (batch, height, new width, kw · channels)."""
    return tf.concat(
        [images[:, :, axes[1].at(j)] for j in range(axes[1].taps)], axis=-1
    )


def _convolve_group(images, kernel, axes):
    kh, kw, channels, filters = kernel.shape
    if filters >= kw * channels:
        return tf.matmul(patches(images, axes), tf.reshape(kernel, (-1, filters)))
    # One product for all rows of the kernel, with the results added, copies the image
    # `kw` times; patches would copy it `kh · kw` times.
    matrix = tf.reshape(
        tf.transpose(kernel, (1, 2, 0, 3)), (kw * channels, kh * filters)
    )
    products = tf.matmul(_width_patches(images, axes), matrix)
    rows = [
        products[:, axes[0].at(i), :, i * filters : (i + 1) * filters]
        for i in range(kh)
    ]
    return tf.add_n(rows)
