"""Tuning curves that follow from a ring's Lorentzian resonance."""

import numpy as np

from keras_pnn.physics import ring
from keras_pnn.physics._tensors import (
    TensorLike,
    as_tensors,
    check,
    check_not_nan,
    nan_below,
)
from keras_pnn.physics.tuning.base import WEIGHT_TOLERANCE, Tuning

# A weight of 1 needs an infinite detuning; the authors of arXiv:2411.12352 stop
# here.
HIGHEST_CLIPPED_WEIGHT = 0.999


class ResonanceTuning(Tuning):
    """A Lorentzian ring whose control moves the detuning up from an offset."""

    offset = 0.0
    port = "balanced"
    through_min = 0.0
    drop_max = 1.0

    @property
    def weight_range(self):
        """Lowest and highest weight over `control_range`.

        With an infinite control range the highest is the limit 1.
        """
        ends = self._ends()
        crosses = ends[0] <= 0 <= ends[1]
        weights = [self._weight_at(end) for end in ends]
        low = self._weight_at(0.0) if crosses else min(weights)
        return float(low), float(max(weights))

    def weight(
        self,
        control: TensorLike,
        shift: TensorLike = 0.0,
        half_width_error: TensorLike = 0.0,
    ):
        """See `Tuning.weight`."""
        check_not_nan("control", control)
        check_not_nan("shift", shift)
        control, shift, error = as_tensors(control, shift, half_width_error)
        detuning = self.detuning(control) + shift
        return self._port_weight(
            *ring.lorentzian(
                detuning, self._half_width(error), self.through_min, self.drop_max
            )
        )

    def row_weight(self, detuning: TensorLike, half_width_error: TensorLike = 0.0):
        """See `Tuning.row_weight`."""
        detuning, error = as_tensors(detuning, half_width_error)
        return self._port_weight(
            *ring.wdm_row(
                detuning, self._half_width(error), self.through_min, self.drop_max
            )
        )

    def clip(self, weight: TensorLike) -> np.ndarray:
        """The nearest weight for which `control` has an answer.

        Where no finite control reaches the highest weight, weights are clipped
        at 0.999 (as the authors of arXiv:2411.12352 do), or at the weight of
        control 0 if that is higher.

        Args:
            weight: Float array or eager tensor.

        Returns:
            Float64 array of the shape of `weight`.

        Raises:
            ValueError: If a weight is NaN.
        """
        low, high = self.weight_range
        if not np.isfinite(self.control_range[1]):
            high = max(HIGHEST_CLIPPED_WEIGHT, self._weight_at(self.offset))
        return np.clip(self._known("weight", weight), low, high)[()]

    def _detuning_for(self, weight):
        """The detuning nearest to the offset, and not below it, in float64 nm."""
        weight = self._reachable(weight)
        square = (weight - self._lowest()) / (1 - weight)
        distance = self.half_width * np.sqrt(np.maximum(square, 0))
        # A weight that is the idle ring's but for rounding means an idle ring.
        idle = (-distance < self.offset) & (
            np.abs(weight - self._weight_at(self.offset)) <= WEIGHT_TOLERANCE
        )
        detuning = np.where(-distance >= self.offset, -distance, distance)
        detuning = np.where(idle, self.offset, detuning)
        # Adding 0 turns -0 into 0.
        return np.clip(detuning, *self._ends()) + 0.0

    def _half_width(self, error):
        check("half_width_error", error, lambda e: e > -1, "above -1")
        # A half-width below 0 would give the weight of its amount.
        return self.half_width * (1 + nan_below(error, -1.0))

    def _port_weight(self, through, drop):
        return through - drop if self.port == "balanced" else through

    def _lowest(self):
        """The weight on resonance."""
        return self.through_min - (self.drop_max if self.port == "balanced" else 0)

    def _weight_at(self, detuning):
        if np.isinf(detuning):
            return 1.0
        square = (detuning / self.half_width) ** 2
        return (square + self._lowest()) / (1 + square)

    def _ends(self):
        """Lowest and highest detuning, in nm."""
        raise NotImplementedError
