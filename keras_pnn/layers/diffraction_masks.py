"""Multiply fields by trainable masks: phases, amplitudes, and their misalignment."""

import math
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_pnn import _checks
from keras_pnn._png import read_png, write_png
from keras_pnn._signatures import Configured
from keras_pnn.layers.limits import DAC, ControlRange, get_dac
from keras_pnn.layers.optics import PITCH, WAVELENGTH, Optics
from keras_pnn.layers.physical import check_built
from keras_pnn.physics import propagation
from keras_pnn.physics._tensors import as_complex, as_float64
from keras_pnn.physics.propagation.free_space import phasor

_TURN = 2 * math.pi
_OPTIONS = ("initializer", "regularizer", "constraint")


class _Mask(Optics):
    """Base of masks: a control per pixel, misalignment, and frames for a modulator."""

    # Name and unit of the control, its value without effect, its value at the highest
    # grey level, and whether it is an angle, with a period of one turn.
    _control, _unit, _nominal, _full, _periodic = "", "", 0.0, 1.0, False

    def __init__(self, shape, outside, dac, wavelength, pitch, /, **kwargs):
        super().__init__(wavelength, pitch, **kwargs)
        self.shape = _checks.optional(_checks.pair, "shape", shape, low=1)
        self.outside = _checks.real("outside", outside, low=0, high=1)
        self.dac = get_dac(dac)

    @property
    def aliases(self) -> dict:
        """The alias `shift_um`: the shift in µm."""
        return {"shift_um": ("shift", lambda amount: amount * (1e-6 / self.pitch))}

    def build(self, input_shape):
        size = self.compute_output_shape(input_shape)[1:]
        if self.shape not in (None, size):
            expected = f"that of the fields, {size[0]} × {size[1]} pixels"
            raise _checks.error("shape", expected, self.shape)
        self.input_spec = keras.layers.InputSpec(shape=(None, *size))
        self.add_control(
            self._control,
            size,
            unit=self._unit,
            nominal=self._nominal,
            **{kind: getattr(self, f"{self._control}_{kind}") for kind in _OPTIONS},
        )
        self.add_imperfection("rotation", (), unit="deg")
        self.add_imperfection("shift", (2,), unit="px")
        self.add_imperfection("scale", (), unit="", nominal=1.0, lower_bound=0.0)
        # The steepest wave that the pixels sample.
        steepest = self.wavelength / (2 * self.pitch)
        limit = 1e3 * math.asin(steepest) if steepest < 1 else None
        bounds = {"lower_bound": limit and -limit, "upper_bound": limit}
        self.add_imperfection("tilt", (2,), unit="mrad", **bounds)
        self.add_imperfection("dead_pixels", size, unit="")
        self._add_wavelength_shift()

    def _alive(self, imperfections: dict):
        return 1 - tf.clip_by_value(imperfections["dead_pixels"], 0.0, 1.0)

    def _apply(self, inputs, transmission, imperfections: dict):
        """Multiplies fields by a misaligned transmission."""
        motion = {name: imperfections[name] for name in ("rotation", "shift", "scale")}
        moved = propagation.warp(transmission, **motion, outside=self.outside)
        deflection = propagation.tilt(
            tuple(moved.shape),
            1e-3 * as_float64(imperfections["tilt"]),
            self._wave(imperfections),
            self.pitch,
            self._output_dtype,
        )
        return self._fields(inputs) * (moved * deflection)

    def _values(self, lookup) -> np.ndarray:
        """Returns the value of the control at each grey level."""
        if lookup is None:
            return np.linspace(0.0, self._full, 256)
        lookup = _checks.array("lookup", lookup)
        if lookup.ndim != 1 or len(lookup) not in (256, 65536):
            expected = "the values of 256 grey levels, or of 65536"
            raise _checks.error("lookup", expected, f"shape {lookup.shape}")
        return lookup

    def frame(self, lookup: np.ndarray | None = None) -> np.ndarray:
        """Returns the grey levels that show the mask on a modulator.

        Args:
            lookup: the value of the control (a phase in rad) at each grey level, 256
                or 65536 of them, in any order, as measured. Default: 256 even steps.

        Returns:
            (height, width), the nearest level: uint8, or uint16 for 65536 levels.

        Raises:
            ValueError: If the layer is not built, a control is not finite, or `lookup`
                does not have 256 or 65536 values.
        """
        values = self._values(lookup)
        controls, _ = self.current_values()
        wanted = np.asarray(self.as_set(controls)[self._control], "float64")
        _checks.finite(self._control, wanted)
        order = np.argsort(values % _TURN if self._periodic else values, kind="stable")
        levels, steps = order, values[order]
        if self._periodic:
            # The last level of a turn is a neighbour of the first.
            steps, wanted = steps % _TURN, wanted % _TURN
            steps = np.concatenate([steps[-1:] - _TURN, steps, steps[:1] + _TURN])
            levels = np.concatenate([order[-1:], order, order[:1]])
        nearest = np.searchsorted((steps[1:] + steps[:-1]) / 2, wanted)
        return levels[nearest].astype("uint8" if len(values) == 256 else "uint16")

    def save_frame(
        self, folder: str | os.PathLike, lookup: np.ndarray | None = None
    ) -> pathlib.Path:
        """Writes `frame` as a greyscale PNG file, `<layer>.png`.

        Args:
            folder: where to write; it is created if it does not exist.
            lookup: as in `frame`.

        Returns:
            The path. Give the layer a name, since an automatic one differs from run
            to run.

        Raises:
            ValueError: As `frame`.
        """
        path = pathlib.Path(folder) / f"{self.name}.png"
        write_png(path, self.frame(lookup))
        return path

    def load_frame(
        self, folder: str | os.PathLike, lookup: np.ndarray | None = None
    ) -> None:
        """Sets the mask from a file that `save_frame` wrote, with the same `lookup`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a greyscale PNG picture of the mask's size, or has
                more levels than `lookup`.
        """
        check_built(self)
        values, variable = self._values(lookup), self.controls[self._control]
        path = pathlib.Path(folder) / f"{self.name}.png"
        levels = read_png(path, tuple(variable.shape))
        if np.iinfo(levels.dtype).max >= len(values):
            expected = f"the values of the {np.iinfo(levels.dtype).max + 1} levels"
            raise _checks.error("lookup", f"{expected} of {path}", len(values))
        variable.assign(values[levels])

    def position(self, name, index):
        return "", *index


@keras.saving.register_keras_serializable(package="keras_pnn")
class PhaseMask(_Mask):
    """Multiplies fields by exp(i phase), a phase for each pixel.

    A modulator shows phases within one turn. `as_set` wraps them to [0, 2π), with
    gradients as if they were not wrapped; with a `DAC`, it rounds them to the nearest
    step of the turn, with straight-through gradients.

    Control: `phase` in rad, (height, width). Imperfections, each nominally without
    effect: `rotation` in degrees (counter-clockwise as displayed), `shift` in pixels,
    (y, x), or its alias `shift_um`, and `scale` of the mask, see
    `physics.propagation.warp`; `tilt`, the deflection of light, (y, x) in mrad, below
    that of the steepest wave that the pixels sample, whose sine is λ/(2 pitch);
    `phase_gain` and `phase_offset` (rad) of the modulator's response; `dead_pixels`,
    (height, width), 1 where a pixel stays at phase 0; and `wavelength_shift` in nm
    (shared), which scales phases by 1/λ.

    Args:
        shape: (height, width) of the mask, as a check. Default: that of the fields.
        phase_initializer: Keras initializer. Default: uniform in [0, 2π).
        phase_regularizer: such as `PhaseRoughness`.
        phase_constraint: such as `PhaseBlocks`.
        dac: `None`, or a `DAC` for the phases. With 256 even levels in a turn:
            `DAC(8, 0, 2 * math.pi * 255 / 256)`.
        outside: amplitude transmission beyond the rim of a misaligned mask, from 0
            (light is lost there) to 1.
        wavelength, pitch: as in `FreeSpace`.

    Input shape, output shape: as in `FreeSpace`.

    Raises:
        ValueError: If an argument is out of range, the inputs are not planes, or
            `shape` is not that of the inputs.

    Example:

    >>> mask = pnn.layers.PhaseMask()
    >>> mask(np.ones((1, 64, 64), "complex64")).shape
    TensorShape([1, 64, 64])
    >>> mask.frame().dtype
    dtype('uint8')

    Reference:

    - Lin et al., Science 361:1004 (2018).
    """

    _control, _unit = "phase", "rad"
    _full, _periodic = _TURN * 255 / 256, True

    def __init__(
        self,
        shape: int | tuple[int, int] | None = None,
        phase_initializer: str | keras.initializers.Initializer | None = None,
        phase_regularizer: str | keras.regularizers.Regularizer | None = None,
        phase_constraint: str | keras.constraints.Constraint | None = None,
        dac: DAC | None = None,
        outside: float = 1.0,
        wavelength: float = WAVELENGTH,
        pitch: float = PITCH,
        **kwargs,
    ):
        super().__init__(shape, outside, dac, wavelength, pitch, **kwargs)
        if phase_initializer is None:
            phase_initializer = keras.initializers.RandomUniform(0.0, _TURN)
        self.phase_initializer = keras.initializers.get(phase_initializer)
        self.phase_regularizer = keras.regularizers.get(phase_regularizer)
        self.phase_constraint = keras.constraints.get(phase_constraint)

    def build(self, input_shape):
        super().build(input_shape)
        self.add_imperfection("phase_gain", (), unit="", nominal=1.0)
        self.add_imperfection("phase_offset", (), unit="rad")

    def as_set(self, controls):
        phase = controls["phase"]
        low = 0.0
        if isinstance(self.dac, DAC):
            # The turn begins in the middle of the phases that the converter lacks, so
            # that they are set to the nearest of its ends.
            low = self.dac.low - max(0, _TURN - (self.dac.high - self.dac.low)) / 2
        shown = low + tf.math.floormod(phase - low, tf.cast(_TURN, phase.dtype))
        if self.dac is not None:
            shown = self.dac(shown)
        # The slope is 1 beyond the converter's range too. The difference is exactly 0,
        # so that the phase is exactly a level.
        return {"phase": tf.stop_gradient(shown) + (phase - tf.stop_gradient(phase))}

    def forward(self, inputs, controls, imperfections):
        phase = self.as_set(controls)["phase"]
        response = as_float64(imperfections["phase_gain"])
        response *= self.wavelength / self._wave(imperfections)
        phase = response * as_float64(phase * self._alive(imperfections))
        phase += as_float64(imperfections["phase_offset"])
        return self._apply(inputs, phasor(phase, self._output_dtype), imperfections)


@keras.saving.register_keras_serializable(package="keras_pnn")
class AmplitudeMask(_Mask):
    """Multiplies fields by an amplitude from 0 to 1 for each pixel.

    A mask cannot amplify: `as_set` clips amplitudes to [0, 1], since an ascent, or an
    optimizer without the constraint, may leave this range. Gradients are as if they
    were not clipped, so that amplitudes can return.

    Control: `amplitude`, (height, width). Imperfections: those of `PhaseMask` without
    `phase_gain` and `phase_offset`; a dead pixel is dark.

    Args:
        shape, outside, wavelength, pitch: as in `PhaseMask`.
        amplitude_initializer, amplitude_regularizer: of Keras. Default: all ones.
        amplitude_constraint: of Keras. The default keeps amplitudes from 0 to 1.
        dac: `None`, or a `DAC` for the amplitudes, such as `DAC(8, 0, 1)`.

    Input shape, output shape: as in `FreeSpace`.

    Raises:
        ValueError: As `PhaseMask`.

    Example:

    >>> mask = pnn.layers.AmplitudeMask()
    >>> mask(np.ones((1, 64, 64), "complex64")).shape
    TensorShape([1, 64, 64])
    """

    _control, _nominal = "amplitude", 1.0

    def __init__(
        self,
        shape: int | tuple[int, int] | None = None,
        amplitude_initializer: str | keras.initializers.Initializer = "ones",
        amplitude_regularizer: str | keras.regularizers.Regularizer | None = None,
        amplitude_constraint: str | keras.constraints.Constraint | None = "range",
        dac: DAC | None = None,
        outside: float = 1.0,
        wavelength: float = WAVELENGTH,
        pitch: float = PITCH,
        **kwargs,
    ):
        super().__init__(shape, outside, dac, wavelength, pitch, **kwargs)
        self.amplitude_initializer = keras.initializers.get(amplitude_initializer)
        self.amplitude_regularizer = keras.regularizers.get(amplitude_regularizer)
        self.amplitude_constraint = (
            ControlRange(0.0, 1.0)
            if amplitude_constraint == "range"
            else keras.constraints.get(amplitude_constraint)
        )

    def as_set(self, controls):
        amplitude = controls["amplitude"]
        passive = tf.stop_gradient(tf.clip_by_value(amplitude, 0.0, 1.0))
        passive += amplitude - tf.stop_gradient(amplitude)
        return {"amplitude": passive if self.dac is None else self.dac(passive)}

    def forward(self, inputs, controls, imperfections):
        amplitude = self.as_set(controls)["amplitude"] * self._alive(imperfections)
        transmission = as_complex(amplitude, tf.as_dtype(self._output_dtype))
        return self._apply(inputs, transmission, imperfections)


@keras.saving.register_keras_serializable(package="keras_pnn")
class PhaseRoughness(Configured, keras.regularizers.Regularizer):
    """Penalises phase differences between neighbouring pixels, up to whole turns.

        penalty = strength · mean(1 − cos(difference)), over rows plus over columns

    Smooth masks are easier to make, lose less light between pixels, and tolerate more
    misalignment.

    Args:
        strength: Float, 0 or more.

    Raises:
        ValueError: If `strength` is negative or not finite.

    Example:

    >>> mask = pnn.layers.PhaseMask(phase_regularizer=pnn.layers.PhaseRoughness(0.1))
    """

    def __init__(self, strength: float = 0.1):
        self.strength = _checks.real("strength", strength, low=0)

    def __call__(self, x):
        steps = (x[1:] - x[:-1], x[:, 1:] - x[:, :-1])
        # An axis of one pixel has no steps.
        rough = [ops.mean(1 - ops.cos(s)) for s in steps if 0 not in s.shape]
        return self.strength * sum(rough, ops.zeros((), x.dtype))


@keras.saving.register_keras_serializable(package="keras_pnn")
class PhaseBlocks(Configured, keras.constraints.Constraint):
    """Keeps phases constant over square blocks of pixels, after each step.

    A block gets the phase of the mean of exp(i phase) over its pixels. Blocks begin at
    the upper left; those at the right and at the bottom may be cut.

    Args:
        size: Integer, pixels along the side of a block.

    Raises:
        ValueError: If `size` is not an integer of 1 or more.

    Example:

    >>> mask = pnn.layers.PhaseMask(phase_constraint=pnn.layers.PhaseBlocks(2))
    """

    def __init__(self, size: int = 2):
        self.size = _checks.integer("size", size, low=1)

    def __call__(self, value):
        value = tf.convert_to_tensor(value)
        height, width = value.shape
        n = self.size
        parts = tf.stack([tf.cos(value), tf.sin(value)], -1)[None]
        parts = tf.pad(parts, [[0, 0], [0, -height % n], [0, -width % n], [0, 0]])
        # Pixels beyond the rim add nothing to a sum.
        cos, sin = tf.unstack(tf.nn.avg_pool2d(parts, n, n, "VALID")[0], axis=-1)
        blocks = tf.repeat(tf.repeat(tf.atan2(sin, cos), n, 0), n, 1)
        return blocks[:height, :width]
