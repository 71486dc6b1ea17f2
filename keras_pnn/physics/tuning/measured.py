"""Compute the weight of a ring from a measured curve, and back."""

import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_pnn import _checks, _warnings
from keras_pnn.physics import heater
from keras_pnn.physics._tensors import TensorLike, as_tensors
from keras_pnn.physics.tuning import smoothing as fits
from keras_pnn.physics.tuning.base import Tuning, width_factor
from keras_pnn.physics.tuning.points import checked_points, read_curves
from keras_pnn.physics.tuning.spline import Spline

# As shares of the span of the weights: the overshoot that causes a warning, the least
# prominence of a peak that counts as the resonance, the residual that causes a warning
# unless noise explains it, and the largest misfit of a resonance that extends a curve.
_OVERSHOOT_WARNING = 0.01
_LEAST_PROMINENCE = 0.05
_RESIDUAL_WARNING = 0.005
_MOST_MISFIT = 0.1


@keras.saving.register_keras_serializable(package="keras_pnn")
class MeasuredTuning(Tuning):
    """A measured curve of weight over control.

    The curve is a cubic spline, so that Hessians see its curvature. It is a function
    of the resonance shift in nm, `efficiency` times the heater's power (for currents,
    `I² * resistance / 1000`), so that shifts from elsewhere add. It is not
    extrapolated: outside the points `weight` raises eagerly, and gives NaN in a graph.

    If noise would give the spline more turning points than a resonance has, and so
    derivatives of the wrong sign, a smooth curve is fitted. It turns only at the
    resonance, and where points reverse by a tenth of their span, as between resonances.

    An error of the half-width stretches the curve about its resonance, `x →
    x0 + (x - x0) / (1 + half_width_error)`, which is exact for a Lorentzian. The
    resonance is the curve's minimum (of a through port, or of through minus drop),
    unless the curve has a more prominent maximum between its ends (a drop port).

    Args:
        control: Sequence of at least 4 floats, strictly increasing (or
            decreasing) and not negative: currents in mA, voltages in V or powers in
            mW of the heater, or shifts of the resonance from its resting point in nm.
        weight: Sequence of as many floats: the measured weights.
        unit: `"mA"`, `"V"`, `"mW"` or `"nm"`: the unit of `control`.
        efficiency: Float. Shift per heater power, in nm/mW. Unused for controls in nm.
        resistance: Float. Resistance of the heater, in Ω. Used for controls in mA or V.
        smoothing: Float above 0: the root mean square distance allowed between the
            curve and the measured weights, about the noise of one measurement. 0: the
            curve passes through all points. `None`: as 0 if noise adds no turning
            point, otherwise the noise, estimated from differences between neighbouring
            weights.
        margin: Float, or `None`. Distance, in nm of resonance shift, that training
            keeps between controls and both ends of the curve, so that shifts by drift
            or fabrication stay on it: at least 4 of their standard deviations. `None`:
            a tenth of the curve's span, but at most 0.1 nm.
        extend_below: Boolean. Whether to continue the curve from its first point
            down to a control of 0 and by `margin` beyond, with a Lorentzian fitted to
            the points, for rings whose heater is off or dead, or that are cooled.

    Attributes:
        overshoot: Float. How far the curve exceeds the range of the measured weights.
        residual: Float. Root mean square distance of the curve from the weights.
        resonance: Float. The shift at the curve's resonance, in nm.
        turning_points: Tuple of floats. Controls at which the weight turns.

    Raises:
        ValueError: If there are fewer than 4 points, a number is not finite, a
            control is negative or, in nm, a laser's wavelength, the controls are not
            strictly monotonic, all weights are equal, no Lorentzian fits the points of
            a curve to extend, or another argument is out of its range.

    Warns:
        UserWarning: If `smoothing` is 0 and noise adds turning points, if `overshoot`
            is above 1 % of the span of the weights, or if `residual` is above
            `smoothing`, or far above the noise between neighbouring points.

    Example:

    >>> tuning = MeasuredTuning([0, 0.1, 0.2, 0.3], [-1, 0, 0.5, 0.7], unit="nm")
    >>> round(float(tuning.weight(0.2)), 6)
    0.5

    Reference:

    - Xu et al., arXiv:2411.12352: measured curves of weight over current.
    """

    def __init__(
        self,
        control: Sequence[float] | np.ndarray,
        weight: Sequence[float] | np.ndarray,
        unit: str,
        efficiency: float = 0.53,
        resistance: float = 375.0,
        smoothing: float | None = None,
        margin: float | None = None,
        extend_below: bool = False,
    ):
        self.unit = _checks.choice("unit", unit, ("mA", "V", "mW", "nm"))
        self.efficiency = _checks.real("efficiency", efficiency, above=0)
        self.resistance = _checks.real("resistance", resistance, above=0)
        self.smoothing = _checks.optional(_checks.real, "smoothing", smoothing, low=0)
        self.extend_below = _checks.boolean("extend_below", extend_below)
        self._control, self._weight = checked_points(control, weight, unit)
        x, y = self._shift(), self._weight
        span = x[-1] - (0.0 if self.extend_below else x[0])
        self.margin = _checks.optional(
            _checks.real, "margin", margin, low=0, below=span / 2
        )
        self._room = min(0.1, 0.1 * span) if margin is None else self.margin
        if self.extend_below:
            x, y = _extended(x, y, -self._room)
        self._spline, needless = fits.through_points(x, y)
        if self.smoothing or (smoothing is None and needless):
            distance = self.smoothing or fits.noise(self._weight)
            self._spline = fits.smooth(x, y, distance)
        if self.extend_below:
            self._spline = Spline(self._spline.curve, 0.0)
        residual = self._spline.curve(self._shift()) - self._weight
        self.residual = float(np.sqrt(np.mean(residual**2)))
        heights, weights = self._spline.heights, self._weight
        above, below = heights.max() - weights.max(), weights.min() - heights.min()
        self.overshoot = float(max(above, below, 0.0))
        self.resonance = self._find_resonance()
        turns = self._spline.turning_points(1e-6)
        self.turning_points = tuple(self._control_for(turns).tolist())
        self._warn(needless if self.smoothing == 0 else 0)

    @classmethod
    def from_csv(cls, path: str | os.PathLike, **options) -> "MeasuredTuning":
        """Reads a measured curve from a CSV file.

        ```
        current_mA,weight
        0.0,0.88
        0.1,0.87
        ```

        Args:
            path: String or path. Cells may be separated by commas, semicolons or
                tabs, with decimal commas in the latter two; lines that begin with
                `#` are skipped. One heading names the control, with its unit at the
                end (`current_mA`, `I (mA)`, `U / V`, `power_mW`, `shift_nm`; A, µA,
                mV, W, µW and pm are converted),
                one is `weight`; other columns are ignored. A control in nm must be
                named `shift` or `detuning`, as the wavelength of a swept laser runs
                the other way.
            **options: The other arguments of the class, such as `efficiency`.

        Returns:
            A `MeasuredTuning`.

        Raises:
            ValueError: If there are fewer than 4 points, the header names no control
                with its unit or no weight, a line has more cells than the header, a
                cell is not a finite number, or the points are invalid. The message
                names the file and the line.
            OSError: If the file cannot be read.
        """
        (curve,) = read_curves(path, r"(?i)weight\b|w$")
        return cls(*curve, **options)

    @property
    def control_range(self):
        """Lowest and highest control on the curve, in `unit`."""
        low = 0.0 if self.extend_below else float(self._control[0])
        return low, float(self._control[-1])

    @property
    def training_range(self):
        """Lowest and highest control that is `margin` away from the curve's ends."""
        if self._room == 0:
            return self.control_range
        ends = self._spline.low + self._room, self._spline.high - self._room
        return tuple(self._control_for(np.array(ends)).tolist())

    @property
    def weight_range(self):
        """Lowest and highest weight of the curve."""
        heights = self._spline.heights
        return float(heights.min()), float(heights.max())

    def heater_shift(self, control: TensorLike):
        if self.unit == "nm":
            return as_tensors(control)[0]
        return self.efficiency * self.heater_power(control)

    def heater_power(self, control: TensorLike):
        if self.unit == "nm":
            return None
        if self.unit == "mA":
            return heater.power(control, self.resistance)
        (control,) = as_tensors(control)
        # V²/Ω is W.
        return control if self.unit == "mW" else control**2 * (1e3 / self.resistance)

    def weight(
        self,
        control: TensorLike,
        shift: TensorLike = 0.0,
        half_width_error: TensorLike = 0.0,
    ):
        _checks.not_nan("control", control)
        _checks.not_nan("shift", shift)
        control, shift, error = as_tensors(control, shift, half_width_error)
        x = self.heater_shift(control) + shift
        # Written as a difference, so that an error of 0 leaves x unchanged bit for bit.
        x = x - (x - self.resonance) * (error / width_factor(error))
        self._check_measured(x)
        return self._spline(x)

    def control(self, weight: TensorLike) -> np.ndarray:
        return self._control_for(self._spline.first(self._reachable(weight)))[()]

    def get_config(self) -> dict:
        return {
            "control": self._control.tolist(),
            "weight": self._weight.tolist(),
            "unit": self.unit,
            "efficiency": self.efficiency,
            "resistance": self.resistance,
            "smoothing": self.smoothing,
            "margin": self.margin,
            "extend_below": self.extend_below,
        }

    def __repr__(self):
        low, high = self.control_range
        points = f"{len(self._control)} points in [{low:g}, {high:g}] {self.unit}"
        turns = ", ".join(f"{turn:.4g}" for turn in self.turning_points[:3])
        more = "" if len(self.turning_points) <= 3 else ", …"
        return (
            f"MeasuredTuning({points}, residual {self.residual:.2g}, "
            f"{len(self.turning_points)} turning points [{turns}{more}])"
        )

    def _control_for(self, shift):
        power = np.maximum(shift, 0.0) / self.efficiency
        found = {
            "nm": lambda: shift,
            "mA": lambda: np.sqrt(power * 1000 / self.resistance),
            "V": lambda: np.sqrt(power * self.resistance / 1000),
            "mW": lambda: power,
        }[self.unit]()
        return np.clip(found, *self.control_range)

    def _shift(self):
        """Returns the measured controls as resonance shifts, in nm."""
        return np.asarray(self.heater_shift(self._control), "float64")

    def _check_measured(self, x):
        known = _checks.concrete(x)
        if known is None or known.size == 0:
            return
        low, high = self._spline.low, self._spline.high
        room = self._spline.room(known.dtype)
        if known.min() < low - room or known.max() > high + room:
            raise ValueError(
                "`control`, `shift` and `half_width_error` must stay on the "
                f"measured curve, at shifts in [{low:g}, {high:g}] nm; a larger "
                "`margin` keeps controls farther from its ends. "
                f"Received: shifts in [{known.min():g}, {known.max():g}] nm"
            )

    def _warn(self, needless):
        span, noise = np.ptp(self._weight), fits.noise(self._weight)
        message = None
        if needless:
            message = (
                f"The curve through all points turns at {len(self.turning_points)} "
                f"controls, {needless} more than its resonance does: noise of about "
                f"{noise:.2g} gives dw/dcontrol the wrong sign between them. Leave "
                "`smoothing` out, or set it to the noise of one weight."
            )
        elif not self.extend_below and self.overshoot > _OVERSHOOT_WARNING * span:
            message = (
                f"The spline leaves the range of the measured weights by "
                f"{self.overshoot:.2g}. Measure more points, or use `smoothing`."
            )
        elif self.smoothing and self.residual > 1.01 * self.smoothing:
            message = (
                "A curve that turns at its resonance alone stays "
                f"{self.residual:.2g} (rms) away from the measured weights, more than "
                f"smoothing={self.smoothing:g} allows. Raise `smoothing`."
            )
        elif self.smoothing is None and self.residual > max(
            _RESIDUAL_WARNING * span, 2 * noise
        ):
            message = (
                f"The fitted curve stays {self.residual:.2g} (rms) away from the "
                f"measured weights, whose noise is about {noise:.2g}. Measure more "
                "points, or give `smoothing`; 0 passes through all points."
            )
        if message:
            _warnings.warn(message)

    def _find_resonance(self):
        turns, heights = self._spline.turns, self._spline.heights
        lowest, highest = heights.argmin(), heights.argmax()

        def prominence(i):
            return min(abs(heights[i] - heights[0]), abs(heights[i] - heights[-1]))

        least = _LEAST_PROMINENCE * (heights[highest] - heights[lowest])
        peak = prominence(highest) > max(prominence(lowest), least)
        return float(turns[highest if peak else lowest])


def _extended(x, y, low):
    """Adds points of the fitted resonance below the first point, down to a shift."""
    if x[0] <= low:
        return x, y
    fitted = fits.fit_resonance(x, y)
    if fitted.misfit > _MOST_MISFIT * np.ptp(y):
        received = f"points {fitted.misfit:.2g} (rms) away from a Lorentzian"
        expected = "False where no resonance fits the points"
        raise _checks.error("extend_below", expected, received)
    steps = np.ceil((x[0] - low) / np.median(np.diff(x)))
    count = int(np.clip(steps, 1, fits.MOST_PIECES))
    below = np.linspace(low, x[0], count, endpoint=False)
    # The Lorentzian's error at the first point, from several points because of noise.
    first = slice(0, 5)
    _, offset = np.polyfit(x[first] - x[0], y[first] - fitted(x[first]), 1)
    return np.append(below, x), np.append(fitted(below) + offset, y)
