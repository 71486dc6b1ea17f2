"""Measured tuning curves."""

import os
import warnings

import keras
import numpy as np

from keras_pnn.physics import heater
from keras_pnn.physics._tensors import (
    TensorLike,
    as_tensors,
    check,
    check_not_nan,
    check_positive,
    concrete,
    nan_below,
)
from keras_pnn.physics.tuning.base import Tuning
from keras_pnn.physics.tuning.points import argument_place, checked_points, read_csv
from keras_pnn.physics.tuning.spline import Spline

_OVERSHOOT_WARNING = 0.01
_LEAST_PROMINENCE = 0.05


@keras.saving.register_keras_serializable(package="keras_pnn")
class MeasuredTuning(Tuning):
    """A measured curve of weight over control.

    The curve is a cubic spline, so that Hessians see its curvature. It is kept
    over the shift of the resonance in nm (for currents, `efficiency * I² *
    resistance / 1000`), so that shifts from elsewhere add. It is not continued
    beyond the points: there `weight` raises eagerly, and gives NaN in a graph.

    An error of the half-width stretches the curve about its resonance, `x →
    x0 + (x - x0) / (1 + half_width_error)`, which is exact for a Lorentzian. The
    resonance is the curve's minimum (as of a through port, or of through minus
    drop), unless the curve's maximum is a peak between the ends that stands out
    more (a drop port).

    Args:
        control: Sequence of at least 4 floats, strictly increasing (or
            decreasing) and not negative: currents in mA, or shifts of the
            resonance from its resting point in nm.
        weight: Sequence of as many floats. The measured weights.
        unit: `"mA"` or `"nm"`: the unit of `control`.
        efficiency: Float. Shift per heater power, in nm/mW. Of use with mA only.
        resistance: Float. Resistance of the heater, in Ω. Of use with mA only.
        smoothing: Float, 0 or more. Root mean square distance that the curve may
            keep from the measured weights: about the noise of one measurement. 0:
            through all points.

    Attributes:
        overshoot: Float. How far the curve leaves the range of the measured
            weights, in units of weight.
        resonance: Float. The shift at the curve's resonance, in nm.

    Raises:
        ValueError: If the points are fewer than 4, not finite, not strictly
            monotonic, of one weight only, or below control 0, or another
            argument is out of its range.

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
        if unit not in ("mA", "nm"):
            raise ValueError(f"`unit` must be 'mA' or 'nm'. Received: unit={unit!r}")
        check_positive("efficiency", efficiency)
        check_positive("resistance", resistance)
        check(
            "smoothing",
            smoothing,
            lambda s: np.isfinite(s) & (s >= 0),
            "0 or more, and finite",
        )
        control, weight = checked_points(control, weight, argument_place)
        self.unit = unit
        self.efficiency, self.resistance = float(efficiency), float(resistance)
        self.smoothing = float(smoothing)
        self._control, self._weight = control, weight
        self._spline = Spline(self._shift(control), weight, self.smoothing)
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
        """Reads a measured curve from a file of two columns.

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
            ValueError: If the file is empty, the header has no unit, a line is
                truncated or has a cell that is no number, or the points are not
                what the class asks for. The message names the line.
            OSError: If the file cannot be read.
        """
        unit, numbers, points = read_csv(path)

        def place(name, i):
            return f"{path}, line {numbers[i]}: `{name}`" if numbers else f"{path}"

        control, weight = checked_points(points[:, 0], points[:, 1], place)
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
        """The weight at a control, on a ring with the given imperfections.

        Args:
            control: Float tensor, in `unit`.
            shift: Float tensor. Added to the shift that the control makes, in nm.
            half_width_error: Float tensor. Relative: stretches the curve about
                its resonance by `1 + half_width_error`.

        Returns:
            Float tensor in the arguments' broadcast shape, of their widest
            float dtype. Twice differentiable. In a graph, NaN where the measured
            curve is left, or `half_width_error` is not above -1.

        Raises:
            ValueError: If a value known eagerly is NaN, `half_width_error` is
                not above -1, or the measured curve is left.
        """
        check_not_nan("control", control)
        check_not_nan("shift", shift)
        check("half_width_error", half_width_error, lambda e: e > -1, "above -1")
        control, shift, error = as_tensors(control, shift, half_width_error)
        error = nan_below(error, -1.0)
        x = self.heater_shift(control) + shift
        # As a difference, so that an error of 0 leaves x as it is, to the bit.
        x = x - (x - self.resonance) * (error / (1 + error))
        self._check_measured(x)
        return self._spline(x)

    def control(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.control`."""
        shift = self._spline.first(self._reachable(weight))
        if self.unit == "mA":
            shift = np.sqrt(shift / (self.efficiency * self.resistance / 1000))
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

    def _shift(self, control):
        if self.unit == "nm":
            return control
        return self.efficiency * self.resistance / 1000 * control**2

    def _check_measured(self, x):
        known = concrete(x)
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
