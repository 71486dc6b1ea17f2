"""Tuning curves: from the control of a ring to its weight."""

import keras
import numpy as np

from keras_pnn.physics import heater
from keras_pnn.physics._tensors import (
    TensorLike,
    as_tensors,
    check,
    check_fraction,
    check_positive,
)
from keras_pnn.physics.tuning.base import Tuning
from keras_pnn.physics.tuning.measured import MeasuredTuning
from keras_pnn.physics.tuning.resonance import ResonanceTuning

__all__ = ["HeaterTuning", "LorentzianTuning", "MeasuredTuning", "Tuning", "get"]


@keras.saving.register_keras_serializable(package="keras_pnn")
class LorentzianTuning(ResonanceTuning):
    """The ideal ring with its detuning as the control, read out balanced.

    `w = through - drop = 1 - 2 / (1 + u²)`, `u = (control + shift) / half_width`.

    The inverse is `control = half_width * sqrt((1 + w) / (1 - w))`. A weight of
    1 needs an infinite detuning; `clip` stops at 0.999.

    Args:
        half_width: Float. Half the full width at half maximum, in nm. The
            default is that of the authors' simulation; their chip has 0.077.

    Raises:
        ValueError: If `half_width` is not positive and finite.

    Example:

    >>> tuning = LorentzianTuning()
    >>> float(tuning.weight(0.15)), float(tuning.control(-1.0))
    (0.0, 0.0)

    Reference:

    - Xu et al., arXiv:2411.12352.
    - Tait et al., Sci. Rep. 7:7430 (2017), eq. 1.
    """

    unit = "nm"
    control_range = (0.0, float("inf"))

    def __init__(self, half_width: float = 0.15):
        self.half_width = _scalar("half_width", half_width, check_positive)

    def heater_shift(self, control: TensorLike):
        """See `Tuning.heater_shift`: the control itself."""
        return as_tensors(control)[0]

    def control(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.control`."""
        return self._detuning_for(weight)[()]

    def get_config(self) -> dict:
        """See `Tuning.get_config`."""
        return {"half_width": self.half_width}

    def _ends(self):
        return self.control_range


@keras.saving.register_keras_serializable(package="keras_pnn")
class HeaterTuning(ResonanceTuning):
    """A ring tuned by the current through its heater.

    `detuning = offset + efficiency * I² * resistance / 1000`; the weight is the
    Lorentzian's, `through - drop` or `through` alone. A weight can lie on both
    sides of the resonance: `control` takes the side with the smaller current.

    At zero current the weight has no derivative by the current, though heat
    from elsewhere still moves it.

    Args:
        offset: Float. Resonance minus laser at zero current, in nm.
        half_width: Float. Half the full width at half maximum, in nm.
        efficiency: Float. Shift per heater power, in nm/mW.
        resistance: Float. Resistance of the heater, in Ω.
        port: `"balanced"` (weight `through - drop`) or `"through"`.
        max_current: Float or None. Highest current, in mA. None: no limit, and
            weights are clipped at 0.999.
        through_min: Float in [0, 1). Through power on resonance.
        drop_max: Float in [0, 1]. Drop power on resonance.

    Raises:
        ValueError: If an argument is out of its range, or
            `through_min + drop_max` is above 1.

    Example:

    >>> tuning = HeaterTuning(offset=-0.3)
    >>> round(float(tuning.control(-1.0)), 3)
    1.229

    Reference:

    - Xu et al., arXiv:2411.12352: the default values are its chip's.
    - Tait et al., Sci. Rep. 7:7430 (2017): weight banks.
    """

    unit = "mA"

    def __init__(
        self,
        offset: float = -0.3,
        half_width: float = 0.077,
        efficiency: float = 0.53,
        resistance: float = 375.0,
        port: str = "balanced",
        max_current: float | None = None,
        through_min: float = 0.0,
        drop_max: float = 1.0,
    ):
        if port not in ("balanced", "through"):
            raise ValueError(
                f"`port` must be 'balanced' or 'through'. Received: port={port!r}"
            )
        self.offset = _scalar("offset", offset, _check_finite)
        self.half_width = _scalar("half_width", half_width, check_positive)
        self.efficiency = _scalar("efficiency", efficiency, check_positive)
        self.resistance = _scalar("resistance", resistance, check_positive)
        self.port = port
        self.max_current = (
            None
            if max_current is None
            else _scalar("max_current", max_current, check_positive)
        )
        self.through_min = _scalar("through_min", through_min, _check_below_one)
        self.drop_max = _scalar("drop_max", drop_max, check_fraction)
        if self.through_min + self.drop_max > 1 + 1e-6:
            raise ValueError(
                "`through_min + drop_max` must be at most 1. Received: "
                f"through_min={through_min}, drop_max={drop_max}"
            )

    @property
    def control_range(self):
        """Lowest and highest current, in mA."""
        limit = float("inf") if self.max_current is None else self.max_current
        return 0.0, limit

    def heater_shift(self, control: TensorLike):
        """See `Tuning.heater_shift`."""
        return heater.resonance_shift(control, self.efficiency, self.resistance)

    def detuning(self, control: TensorLike):
        """See `Tuning.detuning`."""
        return self.offset + self.heater_shift(control)

    def heater_power(self, control: TensorLike):
        """See `Tuning.heater_power`."""
        return heater.power(control, self.resistance)

    def control(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.control`."""
        shift = self._detuning_for(weight) - self.offset
        current = np.sqrt(shift / (self.efficiency * self.resistance / 1000))
        return np.minimum(current, self.control_range[1])[()]

    def get_config(self) -> dict:
        """See `Tuning.get_config`."""
        return {
            "offset": self.offset,
            "half_width": self.half_width,
            "efficiency": self.efficiency,
            "resistance": self.resistance,
            "port": self.port,
            "max_current": self.max_current,
            "through_min": self.through_min,
            "drop_max": self.drop_max,
        }

    def _ends(self):
        most = self.efficiency * self.resistance / 1000 * self.control_range[1] ** 2
        return self.offset, self.offset + most


def get(identifier=None) -> Tuning:
    """Returns a tuning.

    Args:
        identifier: None (a `LorentzianTuning()`), a `Tuning`, the config dict of
            one as `keras.saving.serialize_keras_object` makes it, or a name:
            `"lorentzian"`, `"heater"` or the class's own.

    Returns:
        A `Tuning`.

    Raises:
        ValueError: If `identifier` is none of these.

    Example:

    >>> get("heater").unit
    'mA'
    """
    names = {"lorentzian": LorentzianTuning, "heater": HeaterTuning}
    names |= {kind.__name__.lower(): kind for kind in list(names.values())}
    if identifier is None:
        return LorentzianTuning()
    if isinstance(identifier, str) and identifier.lower() in names:
        return names[identifier.lower()]()
    if isinstance(identifier, dict) and "class_name" in identifier:
        identifier = keras.saving.deserialize_keras_object(
            identifier,
            custom_objects={
                kind.__name__: kind
                for kind in (LorentzianTuning, HeaterTuning, MeasuredTuning)
            },
        )
    if isinstance(identifier, Tuning):
        return identifier
    raise ValueError(
        "`tuning` must be None, a Tuning, its config dict, 'lorentzian' or "
        f"'heater'. Received: tuning={identifier!r}"
    )


def _check_finite(name, value):
    check(name, value, np.isfinite, "finite")


def _check_below_one(name, value):
    check(name, value, lambda v: (v >= 0) & (v < 1), "in [0, 1)")


def _scalar(name, value, check_value):
    check_value(name, value)
    if np.ndim(value) != 0:
        raise ValueError(f"`{name}` must be one number. Received: {name}={value!r}")
    return float(value)
