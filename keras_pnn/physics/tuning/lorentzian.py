"""Compute weights from the Lorentzian resonance of a ring, and solve for detunings.

`RingLayer.weights_at` in `keras_pnn.layers.ring_layer` calls `weight`, `row_weight`.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics import ring
from keras_pnn.physics._tensors import TensorLike, as_tensors
from keras_pnn.physics.tuning.base import WEIGHT_TOLERANCE, Tuning, width_factor

# A weight of 1 needs an infinite detuning; the authors of arXiv:2411.12352 stop here.
HIGHEST_CLIPPED_WEIGHT = 0.999
# The detuning in nm of a place without a ring, far from every resonance.
PARKED = 1e6


class ResonanceTuning(Tuning):
    """Base class of Lorentzian rings whose control raises the detuning.

    A subclass sets `half_width`, and overrides `_ends` if its control is not a
    detuning.
    """

    offset = 0.0
    port = "balanced"
    through_min = 0.0
    drop_max = 1.0
    free_spectral_range = None

    @property
    def weight_range(self):
        """Lowest and highest weight, or the limit if no control reaches it."""
        low, high = ends = self._ends()
        period = self.free_spectral_range
        if period is None:
            turns = [0.0] if low <= 0 <= high else []
        else:
            # The resonance and the midpoint between resonances next above `low`.
            turns = np.ceil([low / period, low / period - 0.5]) * period
            turns = [t for t in turns + [0.0, period / 2] if t <= high]
        weights = [float(self._weight_at(d)) for d in (*ends, *turns)]
        return min(weights), max(weights)

    def weight(
        self,
        control: TensorLike,
        shift: TensorLike = 0.0,
        half_width_error: TensorLike = 0.0,
    ):
        _checks.not_nan("control", control)
        _checks.not_nan("shift", shift)
        control, shift, error = as_tensors(control, shift, half_width_error)
        return self._port_weight(ring.lorentzian, self.detuning(control) + shift, error)

    def row_weight(self, detuning: TensorLike, half_width_error: TensorLike = 0.0):
        return self._port_weight(ring.wdm_row, *as_tensors(detuning, half_width_error))

    def clip(self, weight: TensorLike) -> np.ndarray:
        """Clips weights to those that `control` can solve for.

        If no finite control reaches the highest weight, the upper limit is 0.999 (as
        in arXiv:2411.12352), or the weight at control 0 if that is higher. If none
        reaches the lowest, at a drop port, the lower limit is 0.001 times the weight on
        resonance, or the weight at control 0 if that is lower. See `Tuning.clip`.
        """
        low, high = self.weight_range
        idle = self._weight_at(self.offset)
        first, last = self._attained()
        if not last:
            high = max(HIGHEST_CLIPPED_WEIGHT, idle)
        if not first:
            low = min((1 - HIGHEST_CLIPPED_WEIGHT) * self._resonant(), idle)
        return np.clip(self._known(weight), low, high)[()]

    def _detuning_for(self, weight):
        """Solves for the lowest detuning not below the offset, in float64 nm."""
        weight = self._reachable(weight)
        with np.errstate(divide="ignore"):
            square = (weight - self._resonant()) / (self._distant() - weight)
        distance = self.half_width * np.sqrt(np.maximum(square, 0))
        # A weight that equals the idle ring's within rounding leaves the ring idle.
        idle = np.abs(weight - self._weight_at(self.offset)) <= WEIGHT_TOLERANCE
        period = self.free_spectral_range
        if period is None:
            below = np.where(-distance >= self.offset, -distance, np.inf)
            detuning = np.minimum(below, distance)
            idle &= -distance < self.offset
        else:
            distance = np.arcsin(np.minimum(distance * np.pi / period, 1))
            both = np.stack([-distance, distance]) * period / np.pi
            both += np.ceil((self.offset - both) / period) * period
            detuning = both.min(axis=0)
        detuning = np.where(idle, self.offset, detuning)
        # Adding 0 turns -0 into 0.
        return np.clip(detuning, *self._ends()) + 0.0

    def _port_weight(self, law, detuning, error):
        half_width = self.half_width * width_factor(error)
        if self.free_spectral_range is not None:
            # The curve is a Lorentzian in the sine of half the round-trip phase.
            turn = math.pi / self.free_spectral_range
            periodic = tf.sin(turn * detuning) / turn
            detuning = tf.where(tf.abs(detuning) < PARKED / 2, periodic, detuning)
        through, drop = law(detuning, half_width, self.through_min, self.drop_max)
        return {"balanced": through - drop, "through": through, "drop": drop}[self.port]

    def _resonant(self):
        """The weight on resonance."""
        if self.port == "drop":
            return self.drop_max
        return self.through_min - (self.drop_max if self.port == "balanced" else 0)

    def _distant(self):
        """The weight infinitely far from a resonance."""
        return 0.0 if self.port == "drop" else 1.0

    def _weight_at(self, detuning):
        period = self.free_spectral_range
        if np.isinf(detuning):
            if period is None:
                return self._distant()
            detuning = period / 2
        if period is not None:
            detuning = np.sin(np.pi * detuning / period) * period / np.pi
        square = (detuning / self.half_width) ** 2
        return (self._distant() * square + self._resonant()) / (1 + square)

    def _attained(self):
        if self.free_spectral_range is not None or np.isfinite(self.control_range[1]):
            return True, True
        return self.port != "drop", self.port == "drop"

    def _ends(self):
        """Lowest and highest detuning, in nm."""
        return self.control_range


@keras.saving.register_keras_serializable(package="keras_pnn")
class LorentzianTuning(ResonanceTuning):
    """An ideal ring with balanced readout, controlled by its detuning.

    `w = through - drop = 1 - 2 / (1 + u²)`, `u = (control + shift) / half_width`.

    The inverse is `control = half_width * sqrt((1 + w) / (1 - w))`. A weight of 1
    needs an infinite detuning; `clip` stops at 0.999.

    Args:
        half_width: Float. Half the full width at half maximum, in nm. The default is
            from the simulation of the reference; the chip there has 0.077.

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

    control_range = (0.0, float("inf"))

    def __init__(self, half_width: float = 0.15):
        self.half_width = _checks.real("half_width", half_width, above=0)

    def heater_shift(self, control: TensorLike):
        """See `Tuning.heater_shift`: the control itself."""
        return as_tensors(control)[0]

    def control(self, weight: TensorLike) -> np.ndarray:
        return self._detuning_for(weight)[()]
