"""The part that every layer of microring weight banks shares."""

import math
import numbers

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_pnn._checks import as_real
from keras_pnn.layers.limits import DAC, ControlRange, get_dac
from keras_pnn.layers.physical import PhysicalLayer, check_built
from keras_pnn.physics import detection
from keras_pnn.physics import tuning as tunings
from keras_pnn.physics.tuning.base import WEIGHT_TOLERANCE


class ControlsForWeights(keras.initializers.Initializer):
    """Draws weights with a Keras initializer and returns the controls that give them.

    Where a ring's weights are never negative (a single-ended readout), the
    magnitude of the draw is taken; weights out of reach go to the nearest in reach,
    and controls out of `limits` to the nearest within.
    """

    def __init__(self, initializer, tuning: tunings.Tuning, limits):
        self.initializer, self.tuning, self.limits = initializer, tuning, limits

    def __call__(self, shape, dtype=None):
        # A layer that is first called inside a `tf.function` is built there.
        with tf.init_scope():
            weights = np.asarray(self.initializer(shape, dtype=dtype), "float64")
        if self.tuning.weight_range[0] >= 0:
            weights = np.abs(weights)
        controls = self.tuning.control(self.tuning.clip(weights))
        controls = np.clip(controls, *self.limits)
        return tf.convert_to_tensor(controls, dtype or keras.config.floatx())


class WeightPenalty(keras.regularizers.Regularizer):
    """The kernel's regularizer as one of the controls, from which the kernel follows.

    Keras asks the regularizers of trainable variables once for each loss, however
    often the layer was called.
    """

    def __init__(self, layer: "RingLayer"):
        self.layer = layer

    def __call__(self, control):
        layer = self.layer
        _, imperfections = layer.current_values()
        weights = layer._weights({"control": control}, imperfections)
        penalty = layer.kernel_regularizer(weights)
        if layer.control_regularizer is not None:
            penalty += layer.control_regularizer(control)
        return penalty


def default_constraint(tuning: tunings.Tuning, dac=None) -> ControlRange:
    """Returns the limits of a tuning's control, within the range of its converter.

    A measured curve ends, so its controls stay a tenth of the curve's span in nm
    (0.1 nm at most) away from both ends: a shift of that size stays on the curve.
    """
    low, high = tuning.control_range
    if isinstance(tuning, tunings.MeasuredTuning):
        grid = np.linspace(low, high, 4097)
        shift = np.asarray(tuning.heater_shift(grid))
        margin = min(0.1, 0.1 * (shift[-1] - shift[0]))
        inside = grid[(shift >= shift[0] + margin) & (shift <= shift[-1] - margin)]
        low, high = float(inside[0]), float(inside[-1])
    low, high = common_range((low, high), limits_of(dac))
    return ControlRange(low, high if math.isfinite(high) else None)


def limits_of(constraint_or_dac) -> tuple[float, float]:
    """Returns between what a constraint or a converter lets a control be."""
    if not isinstance(constraint_or_dac, ControlRange | DAC):
        return -math.inf, math.inf
    high = constraint_or_dac.high
    return constraint_or_dac.low, math.inf if high is None else high


def common_range(*ranges: tuple[float, float]) -> tuple[float, float]:
    """Returns what several ranges of a control have in common.

    Raises:
        ValueError: they have nothing in common.
    """
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if not low < high:
        raise ValueError(
            "The ranges of the tuning, of `control_constraint` and of `dac` must "
            f"overlap. Received: {', '.join(f'[{a:g}, {b:g}]' for a, b in ranges)}"
        )
    return low, high


def control_for_shift(tuning: tunings.Tuning, shift: np.ndarray) -> np.ndarray:
    """Returns the controls at which heaters shift their rings by `shift`, in nm.

    By bisection, as the shift rises with the control. What is negative becomes 0.
    """
    low, high = np.zeros_like(shift), np.ones_like(shift)
    while np.any(np.asarray(tuning.heater_shift(high)) < shift):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        below = np.asarray(tuning.heater_shift(middle)) < shift
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shift <= 0, 0.0, (low + high) / 2)


class RingLayer(PhysicalLayer):
    """Controls and imperfections of a matrix of microring weights.

    `MRRBank` and `MRRConv2D` explain the arguments.
    """

    def __init__(
        self,
        outputs: int,
        activation=None,
        use_bias: bool = True,
        tuning=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        control_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        control_constraint="tuning",
        bias_constraint=None,
        temperature_sensitivity: float = 0.08,
        crosstalk=None,
        channel_spacing: float | None = None,
        bank_size: tuple[int, int] | None = None,
        dac=None,
        adc_bits: int | None = None,
        adc_range: float | None = None,
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.tuning = tunings.get(tuning)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.control_regularizer = keras.regularizers.get(control_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.dac = get_dac(dac)
        self.control_constraint = (
            default_constraint(self.tuning, self.dac)
            if control_constraint == "tuning"
            else keras.constraints.get(control_constraint)
        )
        self._limits = common_range(
            self.tuning.control_range,
            limits_of(self.control_constraint),
            limits_of(self.dac),
        )
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.temperature_sensitivity = _finite(
            "temperature_sensitivity", temperature_sensitivity
        )
        self.bank_size = _bank_size(bank_size)
        self.crosstalk = _crosstalk(crosstalk, self.bank_size)
        self.channel_spacing = (
            None
            if channel_spacing is None
            else _positive("channel_spacing", channel_spacing)
        )
        if channel_spacing is not None and isinstance(
            self.tuning, tunings.MeasuredTuning
        ):
            raise ValueError(
                "`channel_spacing` models all rings of a row, which a measured curve "
                f"of one ring cannot. Received: tuning={self.tuning}"
            )
        self.adc_bits = None if adc_bits is None else whole("`adc_bits`", adc_bits, 24)
        if self.adc_bits == 1:
            raise ValueError("`adc_bits` must be at least 2. Received: 1")
        self.adc_range = (
            None if adc_range is None else _positive("adc_range", adc_range)
        )
        if adc_bits is None and adc_range is not None:
            raise ValueError(
                f"`adc_range` needs `adc_bits`. Received: adc_range={adc_range}"
            )
        self._outputs = whole("The number of outputs", outputs)

    def _build_kernel(self, shape: tuple[int, ...]) -> None:
        self._kernel_shape = tuple(int(n) for n in shape)
        if self.crosstalk is not None and len(self.crosstalk) != self._columns:
            raise ValueError(
                "`crosstalk` couples the rings of one row: "
                f"({self._columns}, {self._columns}) here. "
                f"Received: shape {self.crosstalk.shape}"
            )
        penalty = self.control_regularizer
        if self.kernel_regularizer is not None:
            penalty = WeightPenalty(self)
        self.add_control(
            "control",
            self._kernel_shape,
            unit=self.tuning.unit,
            initializer=ControlsForWeights(
                self.kernel_initializer, self.tuning, self._limits
            ),
            regularizer=penalty,
            constraint=self.control_constraint,
        )
        self.add_imperfection("resonance_shift", self._kernel_shape, unit="nm")
        # A linewidth is positive.
        self.add_imperfection(
            "half_width_error", self._kernel_shape, unit="", lower_bound=-1.0
        )
        self.add_imperfection("temperature", (), unit="K", shared=True)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self._outputs,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    @property
    def _fan_in(self) -> int:
        return math.prod(self._kernel_shape[:-1])

    @property
    def _columns(self) -> int:
        return self.bank_size[1] if self.bank_size else self._fan_in

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of the matrix on the bank: (over outputs, over inputs)."""
        rows = self.bank_size[0] if self.bank_size else self._outputs
        return -(-self._outputs // rows), -(-self._fan_in // self._columns)

    @property
    def passes(self) -> int:
        """How often the bank is set and read for one product with the matrix."""
        return math.prod(self.tiles)

    def place(self, output: int, fan_in: int) -> tuple[int, int, int]:
        """Returns (tile, row, column) on the bank of one matrix element."""
        rows = self.bank_size[0] if self.bank_size else self._outputs
        tile = output // rows * self.tiles[1] + fan_in // self._columns
        return tile, output % rows, fan_in % self._columns

    def position(self, name, index):
        fan_in = int(np.ravel_multi_index(index[:-1], self._kernel_shape[:-1]))
        return self.place(index[-1], fan_in)

    def _by_row(self, matrix, fill: float = 0.0):
        """(fan_in, outputs) → (outputs, tiles, columns): one bank row each."""
        tiles = self.tiles[1]
        padding = tiles * self._columns - self._fan_in
        rows = ops.transpose(ops.reshape(matrix, (self._fan_in, self._outputs)))
        # Not `pad`: inside `tf.vectorized_map` it forgets what it pads with.
        filling = ops.full((self._outputs, padding), fill, dtype=rows.dtype)
        rows = ops.concatenate([rows, filling], axis=1)
        return ops.reshape(rows, (self._outputs, tiles, self._columns))

    def _by_kernel(self, rows):
        """The inverse of `_by_row`, in the kernel's shape."""
        rows = ops.reshape(rows, (self._outputs, -1))[:, : self._fan_in]
        return ops.reshape(ops.transpose(rows), self._kernel_shape)

    def _driven(self, control):
        """What the converter sets for a control."""
        return control if self.dac is None else self.dac(control)

    def _weights(self, controls: dict, imperfections: dict):
        return self._weights_at(self._driven(controls["control"]), imperfections)

    def _weights_at(self, control, imperfections: dict):
        width_error = imperfections["half_width_error"]
        warming = self.temperature_sensitivity * imperfections["temperature"]
        shift = imperfections["resonance_shift"] + warming
        if self.crosstalk is not None:
            heated = self._by_row(self.tuning.heater_shift(control))
            others = self.crosstalk - np.eye(len(self.crosstalk))
            spread = ops.matmul(heated, ops.cast(others.T, heated.dtype))
            shift = shift + self._by_kernel(spread)
        if self.channel_spacing is None:
            return self.tuning.weight(control, shift, width_error)
        detuning = self.tuning.detuning(control) + shift
        # A tile that the matrix does not fill has no rings there: far away.
        detuning = self._by_row(detuning, fill=1e6)
        ring = np.arange(self._columns)
        offset = self.channel_spacing * (ring[:, None] - ring[None, :])
        detuning = detuning[..., None] + ops.cast(offset, detuning.dtype)
        return self._by_kernel(
            self.tuning.row_weight(detuning, self._by_row(width_error)[..., None])
        )

    def _kernel(self, controls: dict, imperfections: dict):
        """The weights in the compute dtype."""
        return ops.cast(self._weights(controls, imperfections), self.compute_dtype)

    def _biased(self, outputs):
        if self.bias is None:
            return outputs
        return outputs + ops.cast(self.bias, outputs.dtype)

    def _tiled_product(self, inputs, kernel):
        """inputs (…, fan_in) times kernel, each tile read by the ADC, then added."""
        tiles = self.tiles[1]
        padding = tiles * self._columns - self._fan_in
        lead = [[0, 0]] * (len(inputs.shape) - 1)
        inputs = ops.pad(inputs, [*lead, [0, padding]])
        shape = (*ops.shape(inputs)[:-1], tiles, self._columns)
        inputs = ops.reshape(inputs, shape)
        partial = ops.einsum("...tc,utc->...tu", inputs, self._by_row(kernel))
        # The readout has more steps than float16 or bfloat16 has digits.
        dtype = keras.backend.result_type(partial.dtype, "float32")
        partial = ops.cast(partial, dtype)
        if self.adc_range is None:
            axes = tuple(range(1, len(partial.shape)))
            peak = ops.max(ops.abs(partial), axis=axes, keepdims=True)
            peak = tf.stop_gradient(ops.maximum(peak, keras.config.epsilon()))
            # The largest readout is the highest code.
            scale = peak / (1 - 2.0 ** (1 - self.adc_bits))
            partial = scale * self._read_out(partial / scale, 1.0)
        else:
            partial = self._read_out(partial, self.adc_range)
        return ops.cast(ops.sum(partial, axis=-2), inputs.dtype)

    def _read_out(self, value, limit: float):
        """Two's complement codes: `-limit` is the lowest, and 0 is one of them."""
        high = limit * (1 - 2.0 ** (1 - self.adc_bits))
        return detection.quantize(value, self.adc_bits, -limit, high)

    def program(self, weights, clip: bool = False) -> None:
        """Sets the controls to those that give these weights on the ideal device.

        Heaters that warm each other and rings that see the channels of others are
        made up for; the steps of a `dac` are not.

        Args:
            weights: effective weights, in the shape of the kernel.
            clip: whether a weight out of reach becomes the nearest in reach. What
                is in reach is decided by the tuning, by the ranges of
                `control_constraint` and `dac`, and by the ring's neighbours.

        Raises:
            ValueError: the shape differs, a weight is NaN, or one is out of reach
                and `clip` is false; the controls are then as before.
        """
        check_built(self)
        weights = np.asarray(weights, "float64")
        if weights.shape != self._kernel_shape:
            raise ValueError(
                f"`weights` must have the shape {self._kernel_shape} of the kernel. "
                f"Received: shape {weights.shape}"
            )
        controls, missed = self.controls_for(
            self.tuning.clip(weights) if clip else weights
        )
        if missed.any() and not clip:
            low, high = self._limits
            raise ValueError(
                f"`weights` must be in reach of controls from {low:g} to {high:g} "
                f"{self.tuning.unit} here, or `clip` true. Received: {missed.sum()} "
                f"weights out of reach, such as {weights[missed][0]:g}"
            )
        self.controls["control"].assign(controls)

    def controls_for(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the controls for weights, and which weights they do not give.

        Args:
            weights: float64 array in the shape of the kernel, in reach of the tuning.

        Returns:
            Controls within all limits, and a boolean array of the same shape.
        """
        coupled = self.crosstalk is not None or self.channel_spacing is not None
        alone = self.tuning.control(weights)
        if not coupled:
            controls = np.clip(alone, *self._limits)
            missing = weights - np.asarray(self.tuning.weight(controls))
            return controls, (controls != alone) & (np.abs(missing) > WEIGHT_TOLERANCE)
        ideal = {
            name: tf.constant(self.quantity(name).nominal, "float64", v.shape)
            for name, v in self.imperfections.items()
        }
        # In a graph what leaves a measured curve is NaN, and no error.
        weights_at = tf.function(self._weights_at, autograph=False)
        asked, best, left = weights, None, np.full(weights.shape, np.inf)
        # The tails of other rings are small beside a ring's own weight, so that
        # asking for as much more as is missing converges. Heat is made up for at once.
        for _ in range(1 if self.channel_spacing is None else 50):
            controls = self._unheated(self.tuning.control(self.tuning.clip(asked)))
            controls = np.clip(controls, *self._limits)
            missing = weights - weights_at(tf.constant(controls), ideal).numpy()
            asked = asked + np.nan_to_num(missing)
            amount = np.nan_to_num(np.abs(missing), nan=np.inf)
            # Rows of other outputs know nothing of a weight out of reach.
            rings = tuple(range(weights.ndim - 1))
            better = amount.sum(axis=rings) < left.sum(axis=rings)
            best = controls if best is None else np.where(better, controls, best)
            left = np.where(better, amount, left)
            if left.max() < WEIGHT_TOLERANCE / 10:
                break
        return best, left > 1e-4

    def _unheated(self, controls: np.ndarray) -> np.ndarray:
        """Controls whose heaters, warming each other, shift as these would alone.

        Rings that would have to be colder than they can be stay at their limit, and
        the others make up for them.
        """
        if self.crosstalk is None:
            return controls
        rows = np.array(self._by_row(self.tuning.heater_shift(controls)))
        limits = [
            float(self.tuning.heater_shift(limit)) if math.isfinite(limit) else limit
            for limit in self._limits
        ]
        for tile in range(self.tiles[1]):
            # The last tile may have fewer rings in a row.
            rings = slice(min(self._columns, self._fan_in - tile * self._columns))
            crosstalk, wanted = self.crosstalk[rings, rings], rows[:, tile, rings]
            own = np.linalg.solve(crosstalk, wanted.T).T
            if np.any((own < limits[0]) | (own > limits[1])):
                others = crosstalk - np.eye(len(crosstalk))
                for _ in range(100):
                    own = wanted - np.clip(own, *limits) @ others.T
            rows[:, tile, rings] = np.clip(own, *limits)
        return control_for_shift(self.tuning, np.asarray(self._by_kernel(rows)))

    def effective_weights(self):
        """Returns the effective weights, with the present imperfections.

        Returns:
            A tensor in the shape of the kernel.
        """
        return self._weights(*self.current_values())

    def heater_power(self):
        """Returns the power of each heater in mW, `None` for a tuning without one."""
        controls, _ = self.current_values()
        return self.tuning.heater_power(self._driven(controls["control"]))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "tuning": serialize(self.tuning),
            "kernel_initializer": serialize(self.kernel_initializer),
            "bias_initializer": serialize(self.bias_initializer),
            "kernel_regularizer": serialize(self.kernel_regularizer),
            "control_regularizer": serialize(self.control_regularizer),
            "bias_regularizer": serialize(self.bias_regularizer),
            "activity_regularizer": serialize(self.activity_regularizer),
            "control_constraint": serialize(self.control_constraint),
            "bias_constraint": serialize(self.bias_constraint),
            "temperature_sensitivity": self.temperature_sensitivity,
            "crosstalk": None if self.crosstalk is None else self.crosstalk.tolist(),
            "channel_spacing": self.channel_spacing,
            "bank_size": self.bank_size,
            "dac": serialize(self.dac),
            "adc_bits": self.adc_bits,
            "adc_range": self.adc_range,
        }


def _finite(name: str, value) -> float:
    number = as_real(value)
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be a finite number. Received: {value!r}")
    return number


def _positive(name: str, value) -> float:
    number = as_real(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"`{name}` must be a positive, finite number. Received: {value!r}"
        )
    return number


def _is_whole(value) -> bool:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value) and int(value) == value and value >= 1


def whole(name: str, value, most: int | None = None) -> int:
    """Returns `value` as an int, if it is a whole number of 1 or more."""
    if not _is_whole(value) or (most is not None and value > most):
        limits = ">= 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} must be a whole number {limits}. Received: {value!r}")
    return int(value)


def pair(name: str, value, expected: str = "two") -> tuple[int, int]:
    """Returns `value` as two ints, if it is two whole numbers of 1 or more."""
    numbers_given = tuple(value) if np.iterable(value) else ()
    if len(numbers_given) != 2 or not all(map(_is_whole, numbers_given)):
        raise ValueError(
            f"`{name}` must be {expected} whole numbers >= 1. Received: {value!r}"
        )
    return int(numbers_given[0]), int(numbers_given[1])


def _bank_size(value) -> tuple[int, int] | None:
    if value is None:
        return None
    return pair("bank_size", value, "(rows, columns), two")


def _crosstalk(matrix, bank_size) -> np.ndarray | None:
    if matrix is None:
        return None
    try:
        matrix = np.asarray(matrix, "float64")
    except (TypeError, ValueError):
        raise ValueError(
            f"`crosstalk` must be a matrix of numbers. Received: {matrix!r}"
        ) from None
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not np.isfinite(matrix).all() or np.any(np.diag(matrix) != 1):
        raise ValueError(
            "`crosstalk` must be a finite square matrix with ones on its diagonal. "
            f"Received: shape {matrix.shape}"
        )
    if bank_size and len(matrix) != bank_size[1]:
        raise ValueError(
            f"`crosstalk` must couple the {bank_size[1]} rings of a row. "
            f"Received: shape {matrix.shape}"
        )
    return matrix
