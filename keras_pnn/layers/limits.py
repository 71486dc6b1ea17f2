"""What a driver can set: limits and steps of a control."""

import numbers

import keras
from keras import ops

from keras_pnn._checks import as_real
from keras_pnn.physics import detection


@keras.saving.register_keras_serializable(package="keras_pnn")
class ControlRange(keras.constraints.Constraint):
    """Keeps a control between two limits after each step of the optimizer.

    Args:
        low: the smallest control, in the control's unit.
        high: the largest, `None` for no limit.

    Raises:
        ValueError: `low` is not below `high`.
    """

    def __init__(self, low: float = 0.0, high: float | None = None):
        top = float("inf") if high is None else as_real(high)
        if not as_real(low) < top:
            raise ValueError(
                "`low` must be a number below `high`, and `high` a number or None. "
                f"Received: low={low!r}, high={high!r}"
            )
        self.low, self.high = low, high

    def __call__(self, value):
        value = ops.maximum(value, ops.cast(self.low, value.dtype))
        if self.high is None:
            return value
        return ops.minimum(value, ops.cast(self.high, value.dtype))

    def get_config(self):
        return {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable(package="keras_pnn")
class DAC:
    """A converter with `2**bits` even steps: a DAC on a control, an ADC on a readout.

    The derivative is 1 inside the range and 0 outside (straight-through), so that
    training goes on through the steps.

    Args:
        bits: the resolution, from 1 to 24.
        low: the value of the lowest code.
        high: the value of the highest.

    Raises:
        ValueError: `bits` is no such number, or `low` is not below `high`.

    Example:

    >>> dac = pnn.layers.DAC(bits=8, low=0.0, high=3.0)   # mA
    >>> bank = pnn.layers.MRRBank(10, tuning=pnn.HeaterTuning(), dac=dac)
    """

    def __init__(self, bits: int, low: float, high: float):
        whole = isinstance(bits, numbers.Real) and not isinstance(bits, bool)
        if not (whole and 1 <= bits <= 24 and int(bits) == bits):
            raise ValueError(
                f"`bits` must be a whole number from 1 to 24. Received: {bits!r}"
            )
        self.bits = int(bits)
        self.low, self.high = as_real(low), as_real(high)
        if not -float("inf") < self.low < self.high < float("inf"):
            raise ValueError(
                "`low` must be below `high`, both finite numbers. "
                f"Received: low={low!r}, high={high!r}"
            )

    def __call__(self, value):
        return detection.quantize(value, self.bits, self.low, self.high)

    def get_config(self):
        return {"bits": self.bits, "low": self.low, "high": self.high}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def get_dac(value):
    """Returns a converter for controls from an object, its configuration or `None`.

    Raises:
        ValueError: it cannot be called.
    """
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if value is not None and not callable(value):
        raise ValueError(f"`dac` must be callable. Received: {value!r}")
    return value
