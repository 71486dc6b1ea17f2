"""Limit controls to a range, and round them to the steps of a converter."""

import math

import keras
import numpy as np
from keras import ops

from keras_pnn import _checks
from keras_pnn._signatures import Configured
from keras_pnn.physics import detection
from keras_pnn.physics import tuning as tunings
from keras_pnn.physics._tensors import TensorLike


@keras.saving.register_keras_serializable(package="keras_pnn")
class ControlRange(Configured, keras.constraints.Constraint):
    """Keeps a control between two limits after each step of the optimizer.

    Args:
        low: the smallest control, in the control's unit.
        high: the largest, `None` for no limit.

    Raises:
        ValueError: If `low` is not below `high`.

    Example:

    >>> limit = pnn.layers.ControlRange(0.0, 3.0)  # mA
    >>> limit(np.array([-1.0, 2.0, 9.0])).numpy().tolist()
    [0.0, 2.0, 3.0]
    """

    def __init__(self, low: float = 0.0, high: float | None = None):
        top = math.inf if high is None else _checks.as_real(high)
        if not _checks.as_real(low) < top:
            raise ValueError(
                "Argument `low` must be a number below `high`, and `high` a number or "
                f"None. Received: low={low!r}, high={high!r}"
            )
        self.low, self.high = low, high

    def __call__(self, value):
        value = ops.maximum(value, ops.cast(self.low, value.dtype))
        if self.high is None:
            return value
        return ops.minimum(value, ops.cast(self.high, value.dtype))


@keras.saving.register_keras_serializable(package="keras_pnn")
class DAC(Configured):
    """Rounds controls to `2**bits` even steps, and clips them to the range.

    Gradients pass straight through the steps; see `physics.detection.quantize`.

    Args:
        bits: the resolution, from 1 to 24.
        low: the value of the lowest code.
        high: the value of the highest code.

    Raises:
        ValueError: If `bits` is not an integer from 1 to 24, or if `low` and `high` are
            not finite or not in order.

    Example:

    >>> dac = pnn.layers.DAC(bits=8, low=0.0, high=3.0)   # mA
    >>> bank = pnn.layers.MRRBank(10, tuning=pnn.HeaterTuning(), dac=dac)
    """

    def __init__(self, bits: int, low: float, high: float):
        self.bits = _checks.integer("bits", bits, 1, 24)
        self.low = _checks.real("low", low)
        self.high = _checks.real("high", high, above=self.low)

    def __call__(self, value):
        return detection.quantize(value, self.bits, self.low, self.high)

    def code(self, value: TensorLike) -> np.ndarray:
        """Returns the integer codes of values, from 0 to `2**bits - 1`."""
        inside = np.clip(np.asarray(value, "float64"), self.low, self.high)
        share = (inside - self.low) / (self.high - self.low)
        return np.rint(share * (2**self.bits - 1)).astype(int)


def get_dac(value):
    """Returns a converter for controls from an object, its configuration or `None`."""
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if value is not None and not callable(value):
        expected = "a converter such as pnn.layers.DAC(bits, low, high), or callable"
        raise _checks.error("dac", expected, repr(value))
    return value


def check_converter(dac, tuning: tunings.Tuning) -> None:
    """Raises ValueError if a `DAC` cannot set the controls of a tuning."""
    low, high = tuning.control_range
    if isinstance(dac, DAC) and not (0 <= dac.low < high and low < dac.high):
        expected = (
            "a converter from 0 or above, since controls are not negative, with codes "
            f"in the tuning's range, {low:g} to {high:g} {tuning.unit}"
        )
        raise _checks.error("dac", expected, repr(dac))


def tuning_constraint(tuning: tunings.Tuning, dac=None) -> ControlRange:
    """Returns a constraint to a tuning's training range, within that of its converter.

    Controls of a measured curve keep its `margin` from both of its ends.
    """
    low, high = common_range(tuning.training_range, range_of(dac))
    return ControlRange(low, high if math.isfinite(high) else None)


def range_of(constraint_or_dac) -> tuple[float, float]:
    """Returns the range of controls that a constraint or a converter allows."""
    if not isinstance(constraint_or_dac, ControlRange | DAC):
        return -math.inf, math.inf
    high = constraint_or_dac.high
    return constraint_or_dac.low, math.inf if high is None else high


def common_range(*ranges: tuple[float, float]) -> tuple[float, float]:
    """Returns the intersection of ranges of a control; raises if it is empty."""
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if not low < high:
        raise ValueError(
            "The ranges of the tuning, of `control_constraint` and of `dac` must "
            f"overlap. Received: {', '.join(f'[{a:g}, {b:g}]' for a, b in ranges)}"
        )
    return low, high
