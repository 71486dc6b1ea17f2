"""Compute the weight of a ring from a measured curve, and back."""

import os
import warnings

import keras
import numpy as np

from keras_pnn import _checks
from keras_pnn.physics import heater
from keras_pnn.physics._tensors import TensorLike, as_tensors, nan_below
from keras_pnn.physics.tuning.base import Tuning
from keras_pnn.physics.tuning.points import checked_points, read_csv
from keras_pnn.physics.tuning.spline import Spline

# Shares of the span of the weights: an overshoot that warns, and the least height of
# a peak that counts as the resonance.
_OVERSHOOT_WARNING = 0.01
_LEAST_PROMINENCE = 0.05


@keras.saving.register_keras_serializable(package="keras_pnn")
class MeasuredTuning(Tuning):
    """A measured curve of weight over control.

    The curve is a cubic spline, so that Hessians see its curvature. It is a function
    of the resonance shift in nm (for currents, `efficiency * I² * resistance /
    1000`), so that shifts from elsewhere add. It is not extrapolated: outside the
    points `weight` raises eagerly, and gives NaN in a graph.

    An error of the half-width stretches the curve about its resonance, `x →
    x0 + (x - x0) / (1 + half_width_error)`, which is exact for a Lorentzian. The
    resonance is the curve's minimum (of a through port, or of through minus drop),
    unless the curve has a more prominent maximum between its ends (a drop port).

    Args:
        control: Sequence of at least 4 floats, strictly increasing (or
            decreasing) and not negative: currents in mA, or shifts of the
            resonance from its resting point in nm.
        weight: Sequence of as many floats. The measured weights.
        unit: `"mA"` or `"nm"`: the unit of `control`.
        efficiency: Float. Shift per heater power, in nm/mW. Used with mA only.
        resistance: Float. Resistance of the heater, in Ω. Used with mA only.
        smoothing: Float, 0 or more. Root mean square distance allowed between the
            curve and the measured weights: about the noise of one measurement. 0:
            through all points.

    Attributes:
        overshoot: Float. How far the curve exceeds the range of the measured
            weights, in units of weight.
        resonance: Float. The shift at the curve's resonance, in nm.

    Raises:
        ValueError: If there are fewer than 4 points, a number is not finite, a
            control is negative, the controls are not strictly monotonic, all weights
            are equal, or another argument is out of its range.

    Warns:
        UserWarning: If `overshoot` is above 1 % of the span of the weights.

    Example:

    >>> tuning = MeasuredTuning([0, 0.1, 0.2, 0.3], [-1, 0, 0.5, 0.7], unit="nm")
    >>> round(float(tuning.weight(0.2)), 6)
    0.5

    Reference:

    - Xu et al., arXiv:2411.12352: measured curves of weight over current.
    """

    def __init__(
        self,
        control,
        weight,
        unit: str,
        efficiency: float = 0.53,
        resistance: float = 375.0,
        smoothing: float = 0.0,
    ):
        self.unit = _checks.choice("unit", unit, ("mA", "nm"))
        self.efficiency = _checks.real("efficiency", efficiency, above=0)
        self.resistance = _checks.real("resistance", resistance, above=0)
        self.smoothing = _checks.real("smoothing", smoothing, low=0)
        self._control, self._weight = checked_points(control, weight)
        self._spline = Spline(self._shift(), self._weight, self.smoothing)
        self.overshoot = self._find_overshoot()
        self.resonance = self._find_resonance()

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike,
        efficiency: float = 0.53,
        resistance: float = 375.0,
        smoothing: float = 0.0,
    ) -> "MeasuredTuning":
        """Reads a measured curve from a CSV file of two columns.

        ```
        current_mA,weight
        0.0,0.88
        0.1,0.87
        ```

        Args:
            path: String or path. A CSV file. The header names the control, with
                its unit at the end (`current_mA`, `detuning_nm`), and the weight.
            efficiency: See the class.
            resistance: See the class.
            smoothing: See the class.

        Returns:
            A `MeasuredTuning`.

        Raises:
            ValueError: If there are fewer than 4 points, the header has no unit, a
                line does not hold two finite numbers, or the class refuses the
                points. The message names the file and the line.
            OSError: If the file cannot be read.
        """
        unit, control, weight, lines = read_csv(path)

        def place(name, i):
            return f"{path}, line {lines[i]}: `{name}`"

        control, weight = checked_points(control, weight, place)
        return cls(control, weight, unit, efficiency, resistance, smoothing)

    @property
    def control_range(self):
        """Lowest and highest measured control, in `unit`."""
        return float(self._control[0]), float(self._control[-1])

    @property
    def weight_range(self):
        """Lowest and highest weight of the curve."""
        heights = self._spline.heights
        return float(heights.min()), float(heights.max())

    def heater_shift(self, control: TensorLike):
        """See `Tuning.heater_shift`."""
        if self.unit == "nm":
            return as_tensors(control)[0]
        return heater.resonance_shift(control, self.efficiency, self.resistance)

    def heater_power(self, control: TensorLike):
        """See `Tuning.heater_power`."""
        if self.unit == "nm":
            return None
        return heater.power(control, self.resistance)

    def weight(
        self,
        control: TensorLike,
        shift: TensorLike = 0.0,
        half_width_error: TensorLike = 0.0,
    ):
        """See `Tuning.weight`. Outside the measured curve, raises a ValueError
        eagerly, and gives NaN in a graph.
        """
        _checks.not_nan("control", control)
        _checks.not_nan("shift", shift)
        _checks.tensor(
            "half_width_error", half_width_error, lambda e: e > -1, "above -1"
        )
        control, shift, error = as_tensors(control, shift, half_width_error)
        error = nan_below(error, -1.0)
        x = self.heater_shift(control) + shift
        # Written as a difference, so that an error of 0 leaves x unchanged, to the bit.
        x = x - (x - self.resonance) * (error / (1 + error))
        self._check_measured(x)
        return self._spline(x)

    def control(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.control`."""
        shift = self._spline.first(self._reachable(weight))
        if self.unit == "mA":
            shift = heater.current_for_shift(shift, self.efficiency, self.resistance)
        return np.clip(shift, *self.control_range)[()]

    def get_config(self) -> dict:
        """See `Tuning.get_config`."""
        return {
            "control": self._control.tolist(),
            "weight": self._weight.tolist(),
            "unit": self.unit,
            "efficiency": self.efficiency,
            "resistance": self.resistance,
            "smoothing": self.smoothing,
        }

    def __repr__(self):
        low, high = self.control_range
        points = f"{len(self._control)} points in [{low:g}, {high:g}] {self.unit}"
        return f"MeasuredTuning({points})"

    def _shift(self):
        """The measured controls as resonance shifts, in nm."""
        if self.unit == "nm":
            return self._control
        return self.efficiency * self.resistance / 1000 * self._control**2

    def _check_measured(self, x):
        known = _checks.concrete(x)
        if known is None or known.size == 0:
            return
        low, high = self._spline.low, self._spline.high
        room = self._spline.room(known.dtype)
        if known.min() < low - room or known.max() > high + room:
            raise ValueError(
                "`control`, `shift` and `half_width_error` must stay on the "
                f"measured curve, at shifts in [{low:g}, {high:g}] nm. "
                f"Received: shifts in [{known.min():g}, {known.max():g}] nm"
            )

    def _find_overshoot(self):
        low, high = self._weight.min(), self._weight.max()
        heights = self._spline.heights
        overshoot = float(max(heights.max() - high, low - heights.min(), 0.0))
        if overshoot > _OVERSHOOT_WARNING * (high - low):
            warnings.warn(
                f"The spline leaves the range of the measured weights by "
                f"{overshoot:.2g}. Measure more points, or use `smoothing`.",
                stacklevel=3,
            )
        return overshoot

    def _find_resonance(self):
        turns, heights = self._spline.turns, self._spline.heights
        lowest, highest = heights.argmin(), heights.argmax()

        def prominence(i):
            return min(abs(heights[i] - heights[0]), abs(heights[i] - heights[-1]))

        least = _LEAST_PROMINENCE * (heights[highest] - heights[lowest])
        peak = prominence(highest) > max(prominence(lowest), least)
        return float(turns[highest if peak else lowest])
