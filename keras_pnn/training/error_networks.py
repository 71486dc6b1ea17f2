"""Complex convolutional networks that learn what a device adds to its model."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.devices.process import number
from keras_pnn.layers.bank import pair, whole

# Up to this many pixels across, a row counts as one pixel of many channels: a matrix
# with the zeros written out is faster on a CPU than a convolution of few channels.
_DENSE_WIDTH = 8
_EPSILON = 1e-3


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
        self.filters = whole("`filters`", filters)
        both = kernel_size if np.iterable(kernel_size) else (kernel_size,) * 2
        self.kernel_size = pair("kernel_size", both, "one or two")
        self.strides = whole("`strides`", strides)
        self.transpose = bool(transpose)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias = None

    def build(self, input_shape):
        channels = self._channels(input_shape)
        self.kernel = _weight(
            self,
            "kernel",
            (2, *self.kernel_size, channels, self.filters),
            self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = _weight(self, "bias", (2, self.filters), self.bias_initializer)

    def _channels(self, shape) -> int:
        if len(shape) != 4 or shape[-1] is None:
            raise ValueError(
                "The inputs must be images of shape (batch, height, width, channels) "
                f"with a known number of channels. Received: shape {tuple(shape)}"
            )
        return shape[-1]

    def call(self, inputs):
        stacked = tf.concat(_parts(inputs, _real_dtype(self)), -1)
        kernel = complex_kernel(tf.convert_to_tensor(self.kernel))
        outputs = _convolve(stacked, kernel, self.strides, self.transpose)
        if self.use_bias:
            outputs += tf.reshape(tf.convert_to_tensor(self.bias), (-1,))
        return tf.complex(outputs[..., : self.filters], outputs[..., self.filters :])

    def compute_output_shape(self, input_shape):
        self._channels(input_shape)
        sides = [_side(n, self.strides, self.transpose) for n in input_shape[1:3]]
        return (input_shape[0], *sides, self.filters)

    def compute_output_spec(self, inputs):
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=_complex_dtype(self))

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


@keras.saving.register_keras_serializable(package="keras_pnn")
class ErrorNetwork(keras.layers.Layer):
    """The error-prediction network S of dual adaptive training.

    `y + S(y)` is to be what a device gives where its model gives the field y. The
    modes are laid out as an image of one channel, and `networks` small U-Nets of
    complex convolutions in parallel see it; S is the sum of what they return:

        y ─┬─ block, 4 ────────────────────────────────────────────┬─ conv, 1 ──► S
           └─ down, 4 ─┬─ block, 8 ──────────────────────┬─ up, 4 ─┘
                       └─ down, 8 ── block, 16 ── up, 8 ─┘

    A block is three 3 × 3 convolutions; "down" and "up" are convolutions of stride 2,
    up transposed; where lines meet, channels are joined. Each convolution but the last
    is followed by batch normalisation and a ReLU, both of real and imaginary parts
    separately. The numbers are complex channels, those of `widths`.

    Args:
        networks: number of U-Nets.
        widths: complex channels at each scale, the finest first.
        grid: (rows, columns) of the image, whose product is the number of modes.
            Default: the factorisation that is nearest to a square. The image is
            padded at the bottom and at the right with zeros to sides that can be
            halved, and cropped at the end.
        normalize: whether there is batch normalisation. Without it convolutions have
            a bias in its place.
        zero_start: whether the last convolution starts at 0, so that S is 0 until
            the first step of an optimizer.
        momentum: of the moving averages of the batch normalisation. The default, for
            batches of thousands, is lower than that of Keras.

    Call arguments:
        inputs: complex or real fields. For real ones S is real: the real part.
        training: whether the statistics are the batch's, and enter the moving
            averages; not so while `trainable` is False.

    Input shape:
        `(..., modes)`.

    Output shape:
        As the input; complex64 or float32, or with the dtype policy `"float64"`
        complex128 or float64.

    Raises:
        ValueError: an argument is out of range, or `grid` does not have as many
            places as there are modes.

    Example:

    >>> fields = keras.Input((64,), dtype="complex64")
    >>> errors = ErrorNetwork()(fields)

    Reference:

    - Zheng et al., Dual adaptive training of photonic neural networks,
      Nat. Mach. Intell. 5:1119 (2023).
    """

    def __init__(
        self,
        networks: int = 6,
        widths=(4, 8, 16),
        grid=None,
        normalize: bool = True,
        zero_start: bool = True,
        momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.networks = whole("`networks`", networks)
        given = tuple(widths) if np.iterable(widths) else ()
        if not given:
            raise ValueError(
                "`widths` must be one or more whole numbers >= 1. "
                f"Received: widths={widths!r}"
            )
        self.widths = tuple(whole("`widths`", width) for width in given)
        self.grid = None if grid is None else pair("grid", grid, "(rows, columns), two")
        self.normalize = bool(normalize)
        self.zero_start = bool(zero_start)
        self.momentum = number("momentum", momentum, minimum=0.0)
        if self.momentum >= 1.0:
            raise ValueError(
                f"`momentum` must be below 1. Received: momentum={momentum!r}"
            )
        levels = range(len(self.widths))
        self._blocks = [self._stage(self.widths[i]) for i in levels for _ in range(3)]
        self._downs = [self._stage(width, 2) for width in self.widths[:-1]]
        self._ups = [self._stage(width, 2, True) for width in self.widths[-2::-1]]
        self._last = ErrorStage(
            self.networks,
            1,
            relu=False,
            kernel_initializer="zeros" if self.zero_start else "he_normal",
            dtype=self.dtype_policy,
        )

    def _stage(self, filters: int, strides: int = 1, transpose: bool = False):
        momentum = self.momentum if self.normalize else None
        return ErrorStage(
            self.networks,
            filters,
            strides,
            transpose,
            momentum,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        self._rows, self._columns = self._layout(input_shape)
        multiple = 2 ** (len(self.widths) - 1)
        self._padded = tuple(
            math.ceil(n / multiple) * multiple for n in (self._rows, self._columns)
        )

        def built(stage, shape):
            stage.build(shape)
            return stage.compute_output_shape(shape)

        def joined(one, other):
            return (*one[:-1], one[-1] + other[-1])

        self._pass((1, None, *self._padded, 2, 1), built, joined)

    def _layout(self, shape) -> tuple[int, int]:
        modes = shape[-1] if len(shape) > 1 else None
        if modes is None:
            raise ValueError(
                "The inputs must be fields of shape (batch, ..., modes) with a known "
                f"number of modes. Received: shape {tuple(shape)}"
            )
        grid = self.grid or squarest(modes)
        if grid[0] * grid[1] != modes:
            raise ValueError(
                f"`grid` must have as many places as there are modes, {modes}. "
                f"Received: grid={grid}"
            )
        return grid

    def _pass(self, images, apply, join):
        """Runs the stages of the U-Nets, on tensors or on their shapes."""
        skipped = []
        for level in range(len(self.widths)):
            if level:
                images = apply(self._downs[level - 1], images)
            features = images
            for stage in self._blocks[3 * level : 3 * level + 3]:
                features = apply(stage, features)
            skipped.append(features)
        features = skipped.pop()
        for stage in self._ups:
            features = join(skipped.pop(), apply(stage, features))
        return apply(self._last, features)

    def call(self, inputs, training=None):
        fields = tf.reshape(inputs, (1, -1, self._rows, self._columns, 1))
        down, right = (
            p - n for p, n in zip(self._padded, fields.shape[2:4], strict=True)
        )
        margins = [[0, 0], [0, 0], [0, down], [0, right], [0, 0], [0, 0]]
        images = tf.stack(_parts(fields, _real_dtype(self)), -2)

        def applied(stage, features):
            return stage(features, training=training)

        def joined(one, other):
            return tf.concat([one, other], -1)

        images = tf.pad(images, margins)
        outputs = tf.reduce_sum(self._pass(images, applied, joined), axis=0)
        outputs = outputs[:, : self._rows, : self._columns]
        outputs = tf.reshape(outputs, tf.concat([tf.shape(inputs), [2]], 0))
        outputs = tf.ensure_shape(outputs, (*inputs.shape, 2))
        if inputs.dtype.is_complex:
            return tf.complex(outputs[..., 0], outputs[..., 1])
        return outputs[..., 0]

    def compute_output_shape(self, input_shape):
        self._layout(input_shape)
        return tuple(input_shape)

    def compute_output_spec(self, inputs, training=None):
        is_complex = "complex" in keras.backend.standardize_dtype(inputs.dtype)
        dtype = _complex_dtype(self) if is_complex else _real_dtype(self)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "networks": self.networks,
            "widths": list(self.widths),
            "grid": None if self.grid is None else list(self.grid),
            "normalize": self.normalize,
            "zero_start": self.zero_start,
            "momentum": self.momentum,
        }


class ErrorStage(keras.layers.Layer):
    """One complex convolution of each of several networks, and what follows it.

    Images are (networks, batch, height, width, 2, channels), with real and imaginary
    parts on the axis before the last; inputs may have 1 in the place of the networks.
    One operation serves all networks wherever TensorFlow has it: hundreds of small
    ones, and as many small variables, would cost more than their arithmetic.

    Args:
        networks: number of networks.
        filters: complex output channels.
        strides, transpose: as in `ComplexConv2D`.
        momentum: of the batch normalisation; `None` for a bias in its place.
        relu: whether a ReLU of real and imaginary parts follows.
        kernel_initializer: as in `ComplexConv2D`.
    """

    def __init__(
        self,
        networks: int,
        filters: int,
        strides: int = 1,
        transpose: bool = False,
        momentum: float | None = None,
        relu: bool = True,
        kernel_initializer="he_normal",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.networks, self.filters = networks, filters
        self.strides, self.transpose = strides, transpose
        self.momentum, self.relu = momentum, relu
        self.kernel_initializer = kernel_initializer

    def build(self, input_shape):
        # As in a grouped convolution: initializers see the channels of one network.
        shape = (2, 3, 3, input_shape[-1], self.networks * self.filters)
        self.kernel = _weight(self, "kernel", shape, self.kernel_initializer)
        each = (self.networks, 2 * self.filters)
        self.bias = _weight(self, "bias", each, "zeros")
        if self.momentum is not None:
            self.scale = _weight(self, "scale", each, "ones")
            self.mean = _weight(self, "mean", each, "zeros", trainable=False)
            self.variance = _weight(self, "variance", each, "ones", trainable=False)

    def call(self, images, training=None):
        parts = tf.convert_to_tensor(self.kernel)
        parts = tf.reshape(parts, (*parts.shape[:-1], self.networks, self.filters))
        kernels = complex_kernel(tf.transpose(parts, (0, 4, 1, 2, 3, 5)))
        outputs = _parallel(images, kernels, self.strides, self.transpose)
        # A row for each sample: channels alone are too short for fast arithmetic.
        shape = (self.networks, -1, *outputs.shape[2:])
        rows = tf.reshape(outputs, (self.networks, -1, math.prod(shape[2:])))
        shifts = tf.convert_to_tensor(self.bias)
        if self.momentum is not None:
            rows, factors, shifts = self._normalized(rows, shifts, training)
            rows *= _tiled(factors, rows)
        rows += _tiled(shifts, rows)
        return tf.reshape(tf.nn.relu(rows) if self.relu else rows, shape)

    def _normalized(self, rows, shifts, training):
        """The rows, and the factors and shifts that are left to be applied."""
        scales = tf.convert_to_tensor(self.scale)
        means = tf.convert_to_tensor(self.mean)
        variances = tf.convert_to_tensor(self.variance)
        if not (training and self.trainable):
            factors = scales * tf.math.rsqrt(variances + _EPSILON)
            return rows, factors, shifts - means * factors
        # Of centred rows: the mean square less the squared mean would cancel.
        now = _mean(rows, 2 * self.filters)
        rows -= _tiled(now, rows)
        spread = _mean(tf.square(rows), 2 * self.filters)
        rest = 1.0 - self.momentum
        self.mean.assign(means + rest * (now - means))
        self.variance.assign(variances + rest * (spread - variances))
        return rows, scales * tf.math.rsqrt(spread + _EPSILON), shifts

    def compute_output_shape(self, input_shape):
        sides = [_side(n, self.strides, self.transpose) for n in input_shape[2:4]]
        return (self.networks, input_shape[1], *sides, 2, self.filters)


def squarest(modes: int) -> tuple[int, int]:
    """Returns the factors (rows, columns) of `modes` that are nearest to each other."""
    rows = next(n for n in range(math.isqrt(modes), 0, -1) if modes % n == 0)
    return rows, modes // rows


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


def _weight(layer, name: str, shape: tuple, initializer, trainable: bool = True):
    """A weight that is never of less than single precision."""
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        dtype=_real_dtype(layer),
        trainable=trainable,
        autocast=False,
    )


def _real_dtype(layer) -> str:
    return "float64" if layer.variable_dtype == "float64" else "float32"


def _complex_dtype(layer) -> str:
    return "complex128" if layer.variable_dtype == "float64" else "complex64"


def _parts(values, dtype: str) -> list[tf.Tensor]:
    """The real and the imaginary part."""
    real = tf.cast(tf.math.real(values), dtype)
    if not values.dtype.is_complex:
        return [real, tf.zeros_like(real)]
    return [real, tf.cast(tf.math.imag(values), dtype)]


def _side(size: int | None, strides: int, transpose: bool) -> int | None:
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


def _parallel(images, kernels, strides: int, transpose: bool) -> tf.Tensor:
    """Convolves the images of each network with its own kernel.

    Args:
        images: (networks or 1, batch, height, width, 2, channels).
        kernels: real, (networks, height, width, 2 · channels, 2 · filters).

    Returns:
        (networks, batch, height', width', 2, filters).
    """
    networks, channels, filters = (kernels.shape[i] for i in (0, 3, 4))
    height, width = images.shape[2:4]
    rows, columns = (_side(n, strides, transpose) for n in (height, width))
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


def _tiled(values, rows) -> tf.Tensor:
    """One value for each channel, repeated for all pixels of a row."""
    return tf.tile(values, [1, rows.shape[-1] // values.shape[-1]])[:, None]


def _mean(rows, channels: int) -> tf.Tensor:
    """The mean of each channel over samples and pixels, (networks, channels)."""
    # Samples first, over long rows: a sum over all but short channels is slow.
    pixels = tf.reshape(tf.reduce_mean(rows, axis=1), (rows.shape[0], -1, channels))
    return tf.reduce_mean(pixels, axis=1)
