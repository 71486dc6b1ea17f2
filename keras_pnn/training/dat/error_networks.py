"""Learn the errors of a device's model: complex convolutional error networks."""

import math

import keras
import tensorflow as tf

from keras_pnn.training.dat.complex_convolution import complex_kernel, convolve

# Complex channels of a U-Net at each scale, the finest first.
WIDTHS = (4, 8, 16)
# Momentum of the moving averages; Keras' 0.99 suits thousands of batches.
_MOMENTUM = 0.9
_EPSILON = 1e-3


class ErrorNetwork(keras.layers.Layer):
    """The error-prediction network S of dual adaptive training.

    `y + S(y)` approximates the device's output where its model gives the field y. The
    modes are laid out as an image of one channel, as square as their number allows and
    padded with zeros to sides that can be halved. It enters `networks` small parallel
    U-Nets of complex convolutions, and S is the sum of their outputs:

        y ─┬─ block, 4 ────────────────────────────────────────────┬─ conv, 1 ──► S
           └─ down, 4 ─┬─ block, 8 ──────────────────────┬─ up, 4 ─┘
                       └─ down, 8 ── block, 16 ── up, 8 ─┘

    A block is three 3 × 3 convolutions; "down" and "up" are convolutions of stride 2,
    up transposed; where lines meet, channels are concatenated. Each convolution but the
    last is followed by batch normalisation and a ReLU, both applied to real and
    imaginary parts separately. The numbers count complex channels, `WIDTHS`.

    Inputs are complex or real fields, (batch, modes), and so are the outputs, in single
    precision, or in double with the dtype policy `"float64"`. For real fields S is the
    real part.

    Args:
        networks: number of U-Nets.
        zero: whether the last convolution starts at 0, so that S is 0 until the first
            step of an optimizer. It learns faster with `False`.

    Reference:
        - Zheng et al., Dual adaptive training of photonic neural networks,
          Nat. Mach. Intell. 5:1119 (2023)
    """

    def __init__(self, networks: int, zero: bool = True, **kwargs):
        super().__init__(autocast=False, **kwargs)

        def stage(width, strides=1, transpose=False, **last):
            policy = self.dtype_policy
            return ErrorStage(networks, width, strides, transpose, **last, dtype=policy)

        self._blocks = [[stage(width) for _ in range(3)] for width in WIDTHS]
        self._downs = [stage(width, 2) for width in WIDTHS[:-1]]
        self._ups = [stage(width, 2, True) for width in WIDTHS[-2::-1]]
        self._last = stage(1, last=True, zero=zero)

    def build(self, input_shape) -> None:
        self._grid = squarest(input_shape[-1])
        multiple = 2 ** len(self._downs)
        self._padded = [multiple * math.ceil(n / multiple) for n in self._grid]
        # The stages are built when they are called.
        self.call(tf.zeros((1, input_shape[-1])), training=False)

    def call(self, inputs, training=None):
        rows, columns = self._grid
        fields = tf.reshape(inputs, (1, -1, rows, columns, 1))
        down, right = (p - n for p, n in zip(self._padded, self._grid, strict=True))
        margins = [[0, 0], [0, 0], [0, down], [0, right], [0, 0], [0, 0]]
        images = tf.stack(_complex_parts(fields, _dtype(self)), -2)
        images = tf.pad(images, margins)
        skipped = []
        for level, block in enumerate(self._blocks):
            if level:
                images = self._downs[level - 1](images, training=training)
            features = images
            for stage in block:
                features = stage(features, training=training)
            skipped.append(features)
        features = skipped.pop()
        for stage in self._ups:
            larger = stage(features, training=training)
            features = tf.concat([skipped.pop(), larger], -1)
        outputs = tf.reduce_sum(self._last(features), axis=0)
        outputs = tf.reshape(outputs[:, :rows, :columns], (-1, rows * columns, 2))
        if inputs.dtype.is_complex:
            return tf.complex(outputs[..., 0], outputs[..., 1])
        return outputs[..., 0]


class ErrorMatrix(keras.layers.Layer):
    """A linear error network: S(y) = y A, with a matrix A that starts at 0.

    For real fields S is y Re A.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape) -> None:
        modes = input_shape[-1]
        self.matrix = self.add_weight(
            name="matrix",
            shape=(2, modes, modes),
            initializer="zeros",
            dtype=_dtype(self),
            autocast=False,
        )

    def call(self, inputs, training=None):
        real, imaginary = tf.unstack(tf.convert_to_tensor(self.matrix))
        matrix = tf.complex(real, imaginary) if inputs.dtype.is_complex else real
        return tf.matmul(tf.cast(inputs, matrix.dtype), matrix)


class ErrorStage(keras.layers.Layer):
    """One complex convolution per network, with its normalisation and ReLU.

    Images are (networks, batch, height, width, 2, channels), with real and imaginary
    parts on the axis before the last; inputs may have 1 instead of the number of
    networks. One operation serves all networks where TensorFlow has it, as hundreds of
    small operations and variables would cost more than their arithmetic. `filters` is
    the number of complex output channels. The `last` stage has only a bias instead of
    batch normalisation and ReLU.
    """

    def __init__(
        self, networks, filters, strides, transpose, last=False, zero=False, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        self.networks, self.filters, self.last = networks, filters, last
        self.strides, self.transpose, self.zero = strides, transpose, zero

    def build(self, input_shape) -> None:
        # As in a grouped convolution: initializers see the channels of one network.
        # Uniform in ±1/√(9 · channels), as PyTorch draws the reference's two kernels.
        start = keras.initializers.VarianceScaling(2 / 3, "fan_in", "uniform")
        shape = (2, 3, 3, input_shape[-1], self.networks * self.filters)
        self.kernel = self._add("kernel", shape, "zeros" if self.zero else start)
        each = (self.networks, 2 * self.filters)
        self.bias = self._add("bias", each, "zeros")
        if not self.last:
            self.scale = self._add("scale", each, "ones")
            self.mean = self._add("mean", each, "zeros", trainable=False)
            self.variance = self._add("variance", each, "ones", trainable=False)

    def _add(self, name: str, shape: tuple, initializer, trainable: bool = True):
        """Adds a weight of at least single precision."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype=_dtype(self),
            trainable=trainable,
            autocast=False,
        )

    def call(self, images, training=None):
        parts = tf.convert_to_tensor(self.kernel)
        parts = tf.reshape(parts, (*parts.shape[:-1], self.networks, self.filters))
        kernels = complex_kernel(tf.transpose(parts, (4, 0, 1, 2, 3, 5)))
        outputs = convolve(images, kernels, self.strides, self.transpose)
        # A row for each sample: channels alone are too short for fast arithmetic.
        shape = (self.networks, -1, *outputs.shape[2:])
        rows = tf.reshape(outputs, (self.networks, -1, math.prod(shape[2:])))
        shifts = tf.convert_to_tensor(self.bias)
        if self.last:
            return tf.reshape(rows + _tiled(shifts, rows), shape)
        rows, factors, shifts = self._normalized(rows, shifts, training)
        rows *= _tiled(factors, rows)
        rows += _tiled(shifts, rows)
        return tf.reshape(tf.nn.relu(rows), shape)

    def _normalized(self, rows, shifts, training):
        """The rows, and the factors and shifts still to be applied."""
        scales = tf.convert_to_tensor(self.scale)
        means = tf.convert_to_tensor(self.mean)
        variances = tf.convert_to_tensor(self.variance)
        if not training:
            factors = scales * tf.math.rsqrt(variances + _EPSILON)
            return rows, factors, shifts - means * factors
        # Centred first: the mean square minus the squared mean would lose precision.
        now = _mean(rows, 2 * self.filters)
        rows -= _tiled(now, rows)
        spread = _mean(tf.square(rows), 2 * self.filters)
        rest = 1.0 - _MOMENTUM
        self.mean.assign(means + rest * (now - means))
        self.variance.assign(variances + rest * (spread - variances))
        return rows, scales * tf.math.rsqrt(spread + _EPSILON), shifts


def squarest(modes: int) -> tuple[int, int]:
    """Returns the factors (rows, columns) of `modes` that are nearest to each other."""
    rows = next(n for n in range(math.isqrt(modes), 0, -1) if modes % n == 0)
    return rows, modes // rows


def _dtype(layer) -> str:
    return "float64" if layer.variable_dtype == "float64" else "float32"


def _complex_parts(values, dtype: str) -> list[tf.Tensor]:
    """The real and the imaginary part."""
    real = tf.cast(tf.math.real(values), dtype)
    if not values.dtype.is_complex:
        return [real, tf.zeros_like(real)]
    return [real, tf.cast(tf.math.imag(values), dtype)]


def _tiled(values, rows) -> tf.Tensor:
    """One value for each channel, repeated for all pixels of a row."""
    return tf.tile(values, [1, rows.shape[-1] // values.shape[-1]])[:, None]


def _mean(rows, channels: int) -> tf.Tensor:
    """The mean of each channel over samples and pixels, (networks, channels)."""
    # Samples first, over long rows: a sum over all but short channels is slow.
    pixels = tf.reshape(tf.reduce_mean(rows, axis=1), (rows.shape[0], -1, channels))
    return tf.reduce_mean(pixels, axis=1)
