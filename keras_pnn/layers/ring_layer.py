"""Compute, set and read out microring weights: the base of `MRRBank` and `MRRConv2D`.

`RingLayer.weights_at` computes the weights from controls and imperfections.
"""

import functools
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_pnn import _checks
from keras_pnn.layers import limits
from keras_pnn.layers.mixins import RealInputs, add_bias
from keras_pnn.layers.physical import PhysicalLayer, check_built
from keras_pnn.layers.ring_program import controls_for, ideal_weights, initial_controls
from keras_pnn.layers.ring_readout import RingReadout
from keras_pnn.physics import tuning as tunings
from keras_pnn.physics.tuning.lorentzian import PARKED
from keras_pnn.physics.tuning.signed import SignedCurve


class RingLayer(RingReadout, RealInputs, PhysicalLayer):
    """Base of layers whose kernel is a matrix of microring weights.

    `MRRBank` and `MRRConv2D` explain the arguments.
    """

    def __init__(
        self,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        tuning: tunings.Tuning | str | None = None,
        kernel_initializer: str | keras.initializers.Initializer = "glorot_uniform",
        bias_initializer: str | keras.initializers.Initializer = "zeros",
        kernel_regularizer: str | keras.regularizers.Regularizer | None = None,
        control_regularizer: str | keras.regularizers.Regularizer | None = None,
        bias_regularizer: str | keras.regularizers.Regularizer | None = None,
        activity_regularizer: str | keras.regularizers.Regularizer | None = None,
        control_constraint: str | keras.constraints.Constraint | None = "tuning",
        bias_constraint: str | keras.constraints.Constraint | None = None,
        temperature_sensitivity: float = 0.08,
        crosstalk: np.ndarray | None = None,
        channel_spacing: float | None = None,
        bank_size: tuple[int, int] | None = None,
        dac: limits.DAC | None = None,
        adc_bits: int | None = None,
        adc_range: float | None = None,
        gain: float | bool | np.ndarray | None = None,
        signed: bool = False,
        read_noise: float = 0.0,
        seed: int | None = None,
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
        penalised = getattr(self.control_regularizer, "tuning", self.tuning)
        if penalised != self.tuning:
            expected = f"one for the layer's tuning, {self.tuning!r}"
            raise _checks.error("control_regularizer", expected, f"{penalised!r}")
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.dac = limits.get_dac(dac)
        limits.check_converter(self.dac, self.tuning)
        self.control_constraint = (
            limits.tuning_constraint(self.tuning, self.dac)
            if control_constraint == "tuning"
            else keras.constraints.get(control_constraint)
        )
        self.control_limits = limits.common_range(
            self.tuning.control_range,
            limits.range_of(self.control_constraint),
            limits.range_of(self.dac),
        )
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.temperature_sensitivity = _checks.real(
            "temperature_sensitivity", temperature_sensitivity
        )
        if bank_size is not None and not np.iterable(bank_size):
            raise _checks.error("bank_size", "(rows, columns)", repr(bank_size))
        self.bank_size = _checks.optional(_checks.pair, "bank_size", bank_size, low=1)
        self.crosstalk = _checks.optional(_square, "crosstalk", crosstalk)
        if self.bank_size:
            self._check_crosstalk()
        self.channel_spacing = _checks.optional(
            _checks.real, "channel_spacing", channel_spacing, above=0
        )
        if channel_spacing is not None and isinstance(
            self.tuning, tunings.MeasuredTuning | tunings.RingTunings
        ):
            raise ValueError(
                "`channel_spacing` models all rings of a row, which a measured curve "
                f"of one ring, or a curve for each, cannot. Received: {self.tuning}"
            )
        self.adc_bits = _checks.optional(_checks.integer, "adc_bits", adc_bits, 2, 24)
        self.adc_range = _checks.optional(_checks.real, "adc_range", adc_range, above=0)
        if gain is not None and gain is not True:
            gain = _checks.array("gain", gain, above=0)
            gain = gain if gain.ndim else float(gain)
        self.gain = gain
        self.signed = _checks.boolean("signed", signed)
        if self.signed:
            SignedCurve(self.tuning)
        self.read_noise = _checks.real("read_noise", read_noise, low=0)
        self.seed = seed
        if self.read_noise:
            self.seed_generator = keras.random.SeedGenerator(seed)
        if adc_bits is None and adc_range is not None:
            raise ValueError(
                f"`adc_range` needs `adc_bits`. Received: adc_range={adc_range}"
            )

    def _build_kernel(self, shape: tuple[int, ...]) -> None:
        self._kernel_shape = tuple(int(n) for n in shape)
        self.outputs, self.fan_in = shape[-1], math.prod(shape[:-1])
        self._check_crosstalk()
        self._check_curves()
        self._place = self._laid_out()
        self.tuning = self.tuning.placed(*self._place[1:], self.columns)
        plain = self.kernel_regularizer is None
        self.add_control(
            "control",
            self._kernel_shape,
            unit=self.tuning.unit,
            initializer=functools.partial(initial_controls, self),
            regularizer=self.control_regularizer if plain else self._weight_penalty,
            constraint=self.control_constraint,
        )
        self.add_imperfection("resonance_shift", self._kernel_shape, unit="nm")
        # A linewidth is positive.
        self.add_imperfection(
            "half_width_error", self._kernel_shape, unit="", lower_bound=-1.0
        )
        self.add_imperfection("temperature", (), unit="K", shared=True)
        if self.signed:
            self.add_imperfection("reference_error", (), unit="")
        self.add_stuck("control")
        self.gain_variable = None
        if self.gain is not None:
            trained = self.gain is True
            shape = () if trained else np.shape(self.gain)
            if shape not in ((), (self.outputs,)):
                expected = f"one number, or {self.outputs} for the outputs"
                raise _checks.error("gain", expected, f"shape {shape}")
            start = keras.initializers.Constant(1.0 if trained else self.gain)
            self.gain_variable = self.add_weight(
                name="gain", shape=shape, initializer=start, trainable=trained
            )
        add_bias(self, self.outputs)

    def _weight_penalty(self, control):
        """Applies the kernel's regularizer to the weights that the controls give.

        It is attached to the controls, since Keras evaluates the regularizers of
        trainable variables once per loss, however often the layer was called.
        """
        _, imperfections = self.current_values()
        weights = self.weights_at(self.driven(control), imperfections)
        penalty = self.kernel_regularizer(weights)
        if self.control_regularizer is not None:
            penalty += self.control_regularizer(control)
        return penalty

    def _laid_out(self) -> tuple[np.ndarray, ...]:
        """Returns the pass, and the row and column on the bank, of each ring."""
        output, channel = np.indices((self.outputs, self.fan_in))
        over_outputs, row = np.divmod(output, self.rows)
        over_inputs, column = np.divmod(channel, self.columns)
        places = over_outputs * self.tiles[1] + over_inputs, row, column
        return tuple(place.T.reshape(self._kernel_shape) for place in places)

    def places(self, name):
        if tuple(self.imperfections[name].shape) != self._kernel_shape:
            return super().places(name)
        _, row, column = self._place
        return row * self.columns + column

    def position(self, name, index):
        return tuple(int(place[index]) for place in self._place)

    def check_given(self, name, value):
        if name == "control_stuck":
            self.tuning.validate(value[..., 1][value[..., 0] > 0.5])

    def _check_crosstalk(self) -> None:
        whole = self.rows * self.columns
        if self.crosstalk is not None and len(self.crosstalk) not in (
            self.columns,
            whole,
        ):
            expected = (
                f"of shape {(self.columns,) * 2}, for the rings of one row, or "
                f"{(whole,) * 2}, for all rings of the bank"
            )
            received = f"shape {self.crosstalk.shape}"
            raise _checks.error("crosstalk", expected, received)

    def _check_curves(self) -> None:
        if not isinstance(self.tuning, tunings.RingTunings):
            return
        given, bank = self.tuning.tunings.shape, (self.rows, self.columns)
        if len(given) == 1:
            fits = given[0] <= math.prod(bank)
        else:
            fits = given[0] <= bank[0] and given[1] <= bank[1]
        if not fits:
            expected = (
                f"no more curves than rings, {bank[0]} rows × {bank[1]} columns: give "
                "`bank_size` if the chip has more rings than the matrix takes"
            )
            raise _checks.error("tuning", expected, repr(self.tuning))

    @property
    def curve(self) -> tunings.Tuning | SignedCurve:
        """The curve from controls to weights."""
        return SignedCurve(self.tuning) if self.signed else self.tuning

    @property
    def rows(self) -> int:
        """Rows of the bank, one for each output."""
        return self.bank_size[0] if self.bank_size else self.outputs

    @property
    def columns(self) -> int:
        """Rings in one row of the bank."""
        return self.bank_size[1] if self.bank_size else self.fan_in

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of the matrix on the bank: (over outputs, over inputs)."""
        return -(-self.outputs // self.rows), -(-self.fan_in // self.columns)

    @property
    def passes(self) -> int:
        """Number of times that the bank is set and read for one product."""
        return math.prod(self.tiles)

    def by_row(self, matrix, fill: float = 0.0):
        """Returns a matrix (fan_in, outputs) as bank rows (outputs, tiles, columns)."""
        tiles = self.tiles[1]
        padding = tiles * self.columns - self.fan_in
        rows = ops.transpose(ops.reshape(matrix, (self.fan_in, self.outputs)))
        # Not `pad`, which ignores its fill value inside `tf.vectorized_map`.
        filling = ops.full((self.outputs, padding), fill, dtype=rows.dtype)
        rows = ops.concatenate([rows, filling], axis=1)
        return ops.reshape(rows, (self.outputs, tiles, self.columns))

    def by_kernel(self, rows):
        """Inverts `by_row`; the result has the kernel's shape."""
        rows = ops.reshape(rows, (self.outputs, -1))[:, : self.fan_in]
        return ops.reshape(ops.transpose(rows), self._kernel_shape)

    def by_heat(self, matrix):
        """Returns a matrix (fan_in, outputs) as groups of rings that heat each other.

        The shape is (outputs · tiles, columns) for crosstalk within a row, and (passes,
        rows · columns), row by row, for crosstalk in a whole bank. Where the matrix
        does not fill a bank, values are 0.
        """
        rows = self.by_row(matrix)
        if len(self.crosstalk) == self.columns:
            return ops.reshape(rows, (-1, self.columns))
        over_outputs, over_inputs = self.tiles
        missing = over_outputs * self.rows - self.outputs
        banks = ops.pad(rows, [[0, missing], [0, 0], [0, 0]])
        banks = ops.reshape(banks, (over_outputs, self.rows, over_inputs, self.columns))
        banks = ops.transpose(banks, (0, 2, 1, 3))
        return ops.reshape(banks, (self.passes, self.rows * self.columns))

    def from_heat(self, groups):
        """Inverts `by_heat`; the result has the kernel's shape."""
        if len(self.crosstalk) == self.columns:
            return self.by_kernel(groups)
        banks = ops.reshape(groups, (*self.tiles, self.rows, self.columns))
        rows = ops.transpose(banks, (0, 2, 1, 3))
        rows = ops.reshape(rows, (-1, self.tiles[1] * self.columns))
        return self.by_kernel(rows[: self.outputs])

    def as_set(self, controls):
        return {"control": self.driven(controls["control"])}

    def driven(self, control):
        """Returns a control as the converter sets it."""
        return control if self.dac is None else self.dac(control)

    def weights_at(self, control, imperfections: dict):
        """Computes the weights at the controls that the converter has set."""
        control = self.held({"control": control}, imperfections)["control"]
        width_error = imperfections["half_width_error"]
        warming = self.temperature_sensitivity * imperfections["temperature"]
        shift = imperfections["resonance_shift"] + warming
        if self.crosstalk is not None:
            heated = self.by_heat(self.tuning.heater_shift(control))
            others = self.crosstalk - np.eye(len(self.crosstalk))
            spread = ops.matmul(heated, ops.cast(others.T, heated.dtype))
            shift = shift + self.from_heat(spread)
        if self.channel_spacing is None:
            return self.curve.weight(control, shift, width_error)
        detuning = self.tuning.detuning(control) + shift
        # Where the matrix does not fill a tile, rings are parked far away.
        detuning = self.by_row(detuning, fill=PARKED)
        ring = np.arange(self.columns)
        offset = self.channel_spacing * (ring[:, None] - ring[None, :])
        detuning = detuning[..., None] + ops.cast(offset, detuning.dtype)
        return self.by_kernel(
            self.curve.row_weight(detuning, self.by_row(width_error)[..., None])
        )

    def _kernel(self, controls: dict, imperfections: dict):
        """Computes the weights in the compute dtype."""
        weights = self.weights_at(self.driven(controls["control"]), imperfections)
        if self.signed:
            weights = weights - imperfections["reference_error"]
        return ops.cast(weights, self.compute_dtype)

    def program(self, weights: np.ndarray, clip: bool = False) -> float:
        """Sets the controls for target weights on the ideal device.

        Crosstalk between heaters, and between the rings and channels of a row, is
        compensated; the steps of a `dac` are not. Rings known to be stuck (the present
        `control_stuck`) keep their weight; their effect on other rings is compensated.

        Args:
            weights: effective weights, in the shape of the kernel.
            clip: whether a weight out of reach is replaced by the nearest in reach.
                The reach follows from the tuning, from the ranges of
                `control_constraint` and `dac`, and from the ring's neighbours.

        Returns:
            The distance left, the root mean square of effective minus target weight,
            on the ideal device with the stuck rings, at the stored controls as the
            `dac` sets them.

        Raises:
            ValueError: If the shape differs, a weight is NaN or infinite, or one is
                out of reach and `clip` is `False`. The controls are then unchanged.
        """
        check_built(self)
        weights = _checks.array("weights", weights, self._kernel_shape, broadcast=False)
        controls, missed = controls_for(
            self, self.curve.clip(weights) if clip else weights
        )
        if missed.any() and not clip:
            low, high = self.control_limits
            raise ValueError(
                f"`weights` must be in reach of controls from {low:g} to {high:g} "
                f"{self.tuning.unit} here, or `clip` true. Received: {missed.sum()} "
                f"weights out of reach, such as {weights[missed][0]:g}"
            )
        self.controls["control"].assign(controls)
        stored = self.as_set(self.current_values()[0])["control"]
        missed = ideal_weights(self)(np.asarray(stored, "float64")) - weights
        return float(np.sqrt(np.mean(missed**2)))

    def effective_weights(self) -> tf.Tensor:
        """Returns the weights, in the kernel's shape, with present imperfections."""
        controls, imperfections = self.current_values()
        return self.weights_at(self.driven(controls["control"]), imperfections)

    def heater_power(self) -> tf.Tensor | None:
        """Returns the power of each heater in mW, or `None` without heaters."""
        controls, imperfections = self.current_values()
        controls = self.held(self.as_set(controls), imperfections)
        return self.tuning.heater_power(controls["control"])

    def stuck_range(self, name: str) -> tuple[float, float]:
        """Returns the controls at which a ring may be stuck, the range of training.

        A range without an upper end stops at the control of the highest weight that
        `clip` allows.
        """
        low, high = limits.common_range(self.control_limits, self.tuning.training_range)
        if math.isinf(high):
            high = float(np.max(self.tuning.control(self.tuning.clip(math.inf))))
        return max(low, 0.0), high


def _square(name: str, matrix) -> np.ndarray:
    matrix = _checks.array(name, matrix)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or np.any(np.diag(matrix) != 1):
        expected = "a square matrix with ones on its diagonal"
        raise _checks.error(name, expected, f"shape {matrix.shape}")
    return matrix
