"""Convolutions of complex images, of one network or of several at once."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks

# Up to this many pixels across, a row counts as one pixel of many channels: a matrix
# with the zeros written out is faster on a CPU than a convolution of few channels.
_DENSE_WIDTH = 8


@keras.saving.register_keras_serializable(package="keras_pnn")
class ComplexConv2D(keras.layers.Layer):
    """A convolution of complex images with complex kernels.

    With a kernel A + iB and inputs x + iy, outputs = (A∗x − B∗y) + i (B∗x + A∗y) +
    bias, where ∗ is the correlation of `keras.layers.Conv2D` with `padding="same"`.
    A and B are real weights, and the four products are one real convolution.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the kernel, in pixels; one or two whole
            numbers.
        strides: pixels from one output to the next, the same in both directions.
        transpose: whether it is the transposed convolution of `Conv2DTranspose`,
            which makes images `strides` times larger.
        use_bias: whether a complex bias is added.
        kernel_initializer: draws A and B together, as one real weight of shape
            (2, height, width, channels, filters). `"he_normal"` so keeps the power
            through a ReLU of real and imaginary parts.
        bias_initializer: draws the bias, (2, filters).

    Call arguments:
        inputs: complex images; real ones count as complex.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, height', width', filters)`, complex64; complex128 with the dtype
        policy `"float64"`. height' is ⌈height / strides⌉, or height · strides if
        transposed.

    Raises:
        ValueError: an argument is out of range, or the inputs are not images with a
            known number of channels.

    Example:

    >>> images = tf.ones((2, 8, 8, 1), "complex64")
    >>> ComplexConv2D(4, strides=2)(images).shape
    TensorShape([2, 4, 4, 4])

    Reference:

    - Trabelsi et al., Deep Complex Networks, ICLR (2018), eq. 2.
    """

    def __init__(
        self,
        filters: int,
        kernel_size=3,
        strides: int = 1,
        transpose: bool = False,
        use_bias: bool = True,
        kernel_initializer="he_normal",
        bias_initializer="zeros",
        **kwargs,
    ):
        # Autocasting would round real inputs to half precision.
        super().__init__(autocast=False, **kwargs)
        self.filters = _checks.integer("filters", filters, low=1)
        self.kernel_size = _checks.pair("kernel_size", kernel_size, low=1)
        self.strides = _checks.integer("strides", strides, low=1)
        self.transpose = bool(transpose)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias = None

    def build(self, input_shape):
        channels = self._channels(input_shape)
        self.kernel = add_real_weight(
            self,
            "kernel",
            (2, *self.kernel_size, channels, self.filters),
            self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = add_real_weight(
                self, "bias", (2, self.filters), self.bias_initializer
            )

    def _channels(self, shape) -> int:
        if len(shape) != 4 or shape[-1] is None:
            raise ValueError(
                "The inputs must be images of shape (batch, height, width, channels) "
                f"with a known number of channels. Received: shape {tuple(shape)}"
            )
        return shape[-1]

    def call(self, inputs):
        stacked = tf.concat(complex_parts(inputs, real_dtype(self)), -1)
        kernel = complex_kernel(tf.convert_to_tensor(self.kernel))
        outputs = _convolve(stacked, kernel, self.strides, self.transpose)
        if self.use_bias:
            outputs += tf.reshape(tf.convert_to_tensor(self.bias), (-1,))
        return tf.complex(outputs[..., : self.filters], outputs[..., self.filters :])

    def compute_output_shape(self, input_shape):
        self._channels(input_shape)
        sides = [
            convolved_side(n, self.strides, self.transpose) for n in input_shape[1:3]
        ]
        return (input_shape[0], *sides, self.filters)

    def compute_output_spec(self, inputs):
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=complex_dtype(self))

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": list(self.kernel_size),
            "strides": self.strides,
            "transpose": self.transpose,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def complex_kernel(parts: tf.Tensor) -> tf.Tensor:
    """Returns the real kernel that acts on real and imaginary channels as A + iB does.

    Args:
        parts: A and B, (2, height, width, channels, filters).

    Returns:
        [[A, B], [−B, A]] over the last two axes, (height, width, 2 · channels,
        2 · filters): real channels come first, at inputs and at outputs.
    """
    a, b = parts[0], parts[1]
    return tf.concat([tf.concat([a, b], -1), tf.concat([-b, a], -1)], -2)


def add_real_weight(
    layer, name: str, shape: tuple, initializer, trainable: bool = True
):
    """A weight that is never of less than single precision."""
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        dtype=real_dtype(layer),
        trainable=trainable,
        autocast=False,
    )


def real_dtype(layer) -> str:
    return "float64" if layer.variable_dtype == "float64" else "float32"


def complex_dtype(layer) -> str:
    return "complex128" if layer.variable_dtype == "float64" else "complex64"


def complex_parts(values, dtype: str) -> list[tf.Tensor]:
    """The real and the imaginary part."""
    real = tf.cast(tf.math.real(values), dtype)
    if not values.dtype.is_complex:
        return [real, tf.zeros_like(real)]
    return [real, tf.cast(tf.math.imag(values), dtype)]


def convolved_side(size: int | None, strides: int, transpose: bool) -> int | None:
    if size is None:
        return None
    return size * strides if transpose else math.ceil(size / strides)


def _convolve(images, kernel, strides: int, transpose: bool) -> tf.Tensor:
    """A real convolution with `padding="same"`, or a transposed one."""
    if not transpose:
        return tf.nn.conv2d(images, kernel, strides, "SAME")
    batch, height, width, _ = tf.unstack(tf.shape(images))
    # A width of one is that of whole rows, which have no neighbours.
    wide = width if kernel.shape[1] == images.shape[2] == 1 else strides * width
    size = [batch, strides * height, wide, kernel.shape[3]]
    return tf.nn.conv2d_transpose(
        images, tf.transpose(kernel, (0, 1, 3, 2)), size, strides, "SAME"
    )


def convolve_parallel(images, kernels, strides: int, transpose: bool) -> tf.Tensor:
    """Convolves the images of each network with its own kernel.

    Args:
        images: (networks or 1, batch, height, width, 2, channels).
        kernels: real, (networks, height, width, 2 · channels, 2 · filters).

    Returns:
        (networks, batch, height', width', 2, filters).
    """
    networks, channels, filters = (kernels.shape[i] for i in (0, 3, 4))
    height, width = images.shape[2:4]
    rows, columns = (convolved_side(n, strides, transpose) for n in (height, width))
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


def _dense(kernels, width: int, strides: int, transpose: bool) -> tf.Tensor:
    """Kernels with their second axis written out as a matrix.

    Args:
        kernels: (networks, height, taps, channels, filters).
        width: of the images.

    Returns:
        (networks, height, 1, width · channels, width' · filters), for images of width 1
        whose channels are those of a whole row of pixels.
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
    """Which tap of a kernel leads from which input to which output, along one axis.

    Returns:
        (inputs, outputs, taps), of 0 and 1.
    """
    if transpose:
        return _placement(size * strides, taps, strides, False).transpose(1, 0, 2)
    outputs = math.ceil(size / strides)
    # The padding of TensorFlow's "SAME": the odd pixel comes last.
    before = max((outputs - 1) * strides + taps - size, 0) // 2
    source = strides * np.arange(outputs)[:, None] + np.arange(taps) - before
    return (np.arange(size)[:, None, None] == source).astype("float64")
