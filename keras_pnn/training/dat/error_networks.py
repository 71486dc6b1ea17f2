"""Complex convolutional networks that learn what a device adds to its model."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.devices.process import number
from keras_pnn.training.dat.complex_convolution import (
    add_real_weight,
    complex_dtype,
    complex_kernel,
    complex_parts,
    convolve_parallel,
    convolved_side,
    real_dtype,
)

_EPSILON = 1e-3


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
        self.networks = _checks.integer("networks", networks, low=1)
        given = tuple(widths) if np.iterable(widths) else ()
        if not given:
            raise ValueError(
                "`widths` must be one or more whole numbers >= 1. "
                f"Received: widths={widths!r}"
            )
        self.widths = tuple(_checks.integer("widths", width, low=1) for width in given)
        if grid is not None and not np.iterable(grid):
            raise _checks.error("grid", "(rows, columns)", repr(grid))
        self.grid = _checks.optional(_checks.pair, "grid", grid, low=1)
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
        images = tf.stack(complex_parts(fields, real_dtype(self)), -2)

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
        dtype = complex_dtype(self) if is_complex else real_dtype(self)
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
        self.kernel = add_real_weight(self, "kernel", shape, self.kernel_initializer)
        each = (self.networks, 2 * self.filters)
        self.bias = add_real_weight(self, "bias", each, "zeros")
        if self.momentum is not None:
            self.scale = add_real_weight(self, "scale", each, "ones")
            self.mean = add_real_weight(self, "mean", each, "zeros", trainable=False)
            self.variance = add_real_weight(
                self, "variance", each, "ones", trainable=False
            )

    def call(self, images, training=None):
        parts = tf.convert_to_tensor(self.kernel)
        parts = tf.reshape(parts, (*parts.shape[:-1], self.networks, self.filters))
        kernels = complex_kernel(tf.transpose(parts, (0, 4, 1, 2, 3, 5)))
        outputs = convolve_parallel(images, kernels, self.strides, self.transpose)
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
        sides = [
            convolved_side(n, self.strides, self.transpose) for n in input_shape[2:4]
        ]
        return (self.networks, input_shape[1], *sides, 2, self.filters)


def squarest(modes: int) -> tuple[int, int]:
    """Returns the factors (rows, columns) of `modes` that are nearest to each other."""
    rows = next(n for n in range(math.isqrt(modes), 0, -1) if modes % n == 0)
    return rows, modes // rows


def _tiled(values, rows) -> tf.Tensor:
    """One value for each channel, repeated for all pixels of a row."""
    return tf.tile(values, [1, rows.shape[-1] // values.shape[-1]])[:, None]


def _mean(rows, channels: int) -> tf.Tensor:
    """The mean of each channel over samples and pixels, (networks, channels)."""
    # Samples first, over long rows: a sum over all but short channels is slow.
    pixels = tf.reshape(tf.reduce_mean(rows, axis=1), (rows.shape[0], -1, channels))
    return tf.reduce_mean(pixels, axis=1)
