"""Compute the weight of a ring from the current through its heater, and back."""

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.physics import heater
from keras_pnn.physics._tensors import TensorLike
from keras_pnn.physics.tuning.lorentzian import ResonanceTuning
from keras_pnn.physics.tuning.resonance_fit import (
    TuningFit,
    fit_currents,
    fit_wavelengths,
)


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
        max_current: Float or `None`. Highest current, in mA. `None`: no limit, and
            weights are clipped at 0.999.
        through_min: Float in [0, 1). Through power on resonance.
        drop_max: Float in [0, 1]. Drop power on resonance.
        free_spectral_range: Float or `None`. Distance of the ring's resonances, in nm.
            `None`: one resonance.

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
        self.port = _checks.choice("port", port, ("balanced", "through", "drop"))
        if max_current is not None:
            max_current = _checks.real("max_current", max_current, above=0)
        self.max_current = max_current
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

        Currents alone give the shape of the curve, in units of power. One known length
        gives nm: `half_width`, a number for `free_spectral_range`, or `efficiency`
        (the default, 0.53 nm/mW). The ring is taken as lossless: `through_min +
        drop_max = 1`.

        Args:
            current: Array of shape (points,), in mA, 0 or more.
            weight: Array of shape (points,), or (points, rings).
            port: See the class.
            free_spectral_range: `None`: one resonance. `True`: several, whose distance
                is fitted. A number: that distance, in nm; it gives the efficiency.
            half_width: In nm, if known.
            efficiency: In nm/mW, if known.
            resistance: See the class.
            max_current: See the class. Default: the highest of `current`.

        Returns:
            A `TuningFit`.

        Raises:
            ValueError: If shapes differ, there are fewer than 8 points, a number is not
                finite, more than one length is given, a curve has no resonance, or the
                fitted ring shows that a unit is not the one that is asked for.

        Example:

        >>> current = np.linspace(0, 2, 41)
        >>> found = HeaterTuning.fit(current, HeaterTuning().weight(current))
        >>> round(found.tuning.offset, 4)
        -0.3
        """
        return fit_currents(
            cls, current, weight, port, free_spectral_range, half_width, efficiency,
            resistance, max_current,
        )  # fmt: skip

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

        The spectrum may have any scale, which is fitted.

        Args:
            wavelength: Array of shape (points,), of a swept laser, in nm.
            transmission: Array of shape (points,), or (points, rings), in powers, not
                in dB.
            laser: The wavelength of the laser in operation, in nm. The offset is that
                of the resonance nearest to it.
            port: See the class: where the spectrum was measured.
            free_spectral_range: As in `fit`; a number is known.
            **options: Other arguments of the tuning, such as `efficiency`, which a
                spectrum does not show.

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
        return fit_wavelengths(
            cls, wavelength, transmission, laser, port, free_spectral_range, options
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
        current = heater.current_for_shift(shift, self.efficiency, self.resistance)
        return np.minimum(current, self.control_range[1])[()]

    def get_config(self) -> dict:
        """See `Tuning.get_config`."""
        names = ("offset", "half_width", "efficiency", "resistance")
        names += ("port", "max_current", "through_min", "drop_max")
        names += ("free_spectral_range",)
        return {name: getattr(self, name) for name in names}

    def _ends(self):
        most = self.efficiency * self.resistance / 1000 * self.control_range[1] ** 2
        return self.offset, self.offset + most
