"""Compute the weight of a ring from the current through its heater, and back."""

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.physics import heater
from keras_pnn.physics._tensors import TensorLike
from keras_pnn.physics.tuning.lorentzian import ResonanceTuning
from keras_pnn.physics.tuning.points import WIDEST_SHIFT
from keras_pnn.physics.tuning.resonance_fit import (
    TuningFit,
    check_units,
    curves_of,
    find_resonance,
    lossless,
    nearest,
)

_PORTS = ("balanced", "through", "drop")


@keras.saving.register_keras_serializable(package="keras_pnn")
class HeaterTuning(ResonanceTuning):
    """A ring tuned by the current through its heater.

    `detuning = offset + efficiency * I² * resistance / 1000`; the weight is that of a
    Lorentzian, `through - drop` or one port alone. If a weight occurs on both sides
    of the resonance, `control` returns the smaller current.

    At zero current the derivative of the weight with respect to the current is 0,
    although heat from elsewhere still changes the weight.

    Args:
        offset: Float. Resonance minus laser at zero current, in nm.
        half_width: Float. Half the full width at half maximum, in nm.
        efficiency: Float. Shift per heater power, in nm/mW.
        resistance: Float. Resistance of the heater, in Ω.
        port: `"balanced"` (weight `through - drop`), `"through"` or `"drop"`.
        max_current: Float or `None`. Highest current, in mA. `None`: no limit; `clip`
            then stops before weights that need an infinite current.
        through_min: Float in [0, 1). Through power on resonance.
        drop_max: Float in [0, 1]. Drop power on resonance.
        free_spectral_range: Float or `None`. Distance between the ring's resonances,
            in nm. `None`: one resonance.

    Raises:
        ValueError: If an argument is out of its range, or `through_min + drop_max` is
            above 1.

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
        free_spectral_range: float | None = None,
    ):
        self.offset = _checks.real("offset", offset)
        self.half_width = _checks.real("half_width", half_width, above=0)
        self.efficiency = _checks.real("efficiency", efficiency, above=0)
        self.resistance = _checks.real("resistance", resistance, above=0)
        self.port = _checks.choice("port", port, _PORTS)
        self.max_current = _checks.optional(
            _checks.real, "max_current", max_current, above=0
        )
        self.through_min = _checks.real("through_min", through_min, low=0, below=1)
        self.drop_max = _checks.real("drop_max", drop_max, 0, 1)
        # The margin is for float32 sums such as 0.9 + 0.1.
        total = self.through_min + self.drop_max
        _checks.real("through_min + drop_max", total, high=1 + 1e-6)
        self.free_spectral_range = _checks.optional(
            _checks.real, "free_spectral_range", free_spectral_range, above=0
        )

    @classmethod
    def fit(
        cls,
        current: np.ndarray,
        weight: np.ndarray,
        port: str = "balanced",
        free_spectral_range: float | bool | None = None,
        half_width: float | None = None,
        efficiency: float | None = None,
        resistance: float = 375.0,
        max_current: float | None = None,
    ) -> TuningFit:
        """Fits a ring, or each of several, to weights at measured currents.

        Currents alone give the curve over heater power. One known value converts it to
        nm: `half_width`, a number for `free_spectral_range`, or `efficiency` (the
        default, 0.53 nm/mW). The ring is assumed to be lossless.

        Args:
            current: Array of shape (points,), in mA, 0 or more.
            weight: Array of shape (points,), or (points, rings).
            port: See the class.
            free_spectral_range: `None`: one resonance. `True`: several, at a distance
                that is fitted. A number: that distance in nm, which gives the
                efficiency.
            half_width: In nm, if known.
            efficiency: In nm/mW, if known.
            resistance: See the class.
            max_current: See the class. Default: the highest of `current`.

        Returns:
            A `TuningFit`.

        Raises:
            ValueError: If shapes differ, there are fewer than 8 points, a number is not
                finite, more than one known value is given, a curve has no resonance, or
                the fitted ring is so implausible that a unit must be wrong.

        Example:

        >>> current = np.linspace(0, 2, 41)
        >>> found = HeaterTuning.fit(current, HeaterTuning().weight(current))
        >>> round(found.tuning.offset, 4)
        -0.3
        """
        current, curves = curves_of("current", current, "weight", weight)
        _checks.not_negative("current", current)
        port = _checks.choice("port", port, _PORTS)
        resistance = _checks.real("resistance", resistance, above=0)
        known = {"half_width": half_width, "efficiency": efficiency}
        if not isinstance(free_spectral_range, bool | None):
            known["free_spectral_range"] = free_spectral_range
        known = {
            name: _checks.real(name, value, above=0)
            for name, value in known.items()
            if value is not None
        }
        if len(known) > 1:
            raise _checks.error("fit", "given one known length", sorted(known))
        if max_current is None:
            max_current = float(current.max())
        power = current**2 * resistance / 1000
        tunings, residuals = [], []
        for i, curve in enumerate(curves):
            found = find_resonance(
                power, curve, port, bool(free_spectral_range), f"weight[:, {i}]"
            )
            scale = known.get("efficiency", 0.53)
            if "half_width" in known:
                scale = known["half_width"] / found.half_width
            elif "free_spectral_range" in known:
                scale = known["free_spectral_range"] / found.period
            half_width = scale * found.half_width
            check_units("current (mA)", "efficiency (nm/mW)", scale)
            check_units("current (mA)", "half-width (nm)", half_width)
            tuning = cls(
                offset=scale * nearest(-found.center, found.period),
                half_width=half_width,
                efficiency=scale,
                resistance=resistance,
                port=port,
                max_current=max_current,
                free_spectral_range=found.period and scale * found.period,
                **lossless(port, found.level),
            )
            tunings.append(tuning)
            residuals.append(found.residual)
        return TuningFit(tunings, np.array(residuals))

    @classmethod
    def fit_spectrum(
        cls,
        wavelength: np.ndarray,
        transmission: np.ndarray,
        laser: float,
        port: str = "through",
        free_spectral_range: float | bool | None = None,
        **options,
    ) -> TuningFit:
        """Fits a ring, or each of several, to a spectrum with all heaters off.

        The scale of the spectrum is fitted.

        Args:
            wavelength: Array of shape (points,): the swept laser, in nm.
            transmission: Array of shape (points,), or (points, rings): powers, not in
                dB.
            laser: The wavelength of the laser in operation, in nm. The offset is that
                of the resonance nearest to it.
            port: `"through"` or `"drop"`, where the spectrum was measured, or
                `"balanced"` for through minus drop.
            free_spectral_range: As in `fit`; a number is kept, not fitted.
            **options: Other arguments of the class, such as `efficiency`.

        Returns:
            A `TuningFit`.

        Raises:
            ValueError: As `fit`.

        Example:

        >>> wavelength = np.linspace(1542, 1544, 201)
        >>> power = 1 - 0.9 / (1 + ((wavelength - 1542.7) / 0.077) ** 2)
        >>> found = HeaterTuning.fit_spectrum(wavelength, power, laser=1543.0)
        >>> round(found.tuning.offset, 4), round(found.tuning.half_width, 4)
        (-0.3, 0.077)
        """
        wavelength, curves = curves_of(
            "wavelength", wavelength, "transmission", transmission
        )
        port = _checks.choice("port", port, _PORTS)
        laser = _checks.real("laser", laser, above=0)
        low, high = wavelength.min(), wavelength.max()
        if not low - WIDEST_SHIFT < laser < high + WIDEST_SHIFT:
            expected = f"in nm, as the wavelengths from {low:g} to {high:g}"
            raise _checks.error("laser", expected, f"{laser:g}")
        period = free_spectral_range
        if not isinstance(period, bool | None):
            period = _checks.real("free_spectral_range", period, above=0)
        detuning = wavelength - laser
        tunings, residuals = [], []
        for i, curve in enumerate(curves):
            name = f"transmission[:, {i}]"
            found = find_resonance(detuning, curve, port, period, name, scaled=True)
            check_units("wavelength (nm)", "half-width (nm)", found.half_width)
            tuning = cls(
                offset=nearest(found.center, found.period),
                half_width=found.half_width,
                free_spectral_range=found.period,
                port=port,
                **{**lossless(port, found.level), **options},
            )
            tunings.append(tuning)
            residuals.append(found.residual)
        return TuningFit(tunings, np.array(residuals))

    @property
    def control_range(self):
        """Lowest and highest current, in mA."""
        limit = float("inf") if self.max_current is None else self.max_current
        return 0.0, limit

    def heater_shift(self, control: TensorLike):
        return heater.resonance_shift(control, self.efficiency, self.resistance)

    def detuning(self, control: TensorLike):
        return self.offset + self.heater_shift(control)

    def heater_power(self, control: TensorLike):
        return heater.power(control, self.resistance)

    def control(self, weight: TensorLike) -> np.ndarray:
        shift = self._detuning_for(weight) - self.offset
        current = heater.current_for_shift(shift, self.efficiency, self.resistance)
        return np.minimum(current, self.control_range[1])[()]

    def _ends(self):
        most = self.efficiency * self.resistance / 1000 * self.control_range[1] ** 2
        return self.offset, self.offset + most
