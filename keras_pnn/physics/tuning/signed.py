"""Convert the transmission of a single port to a signed weight."""

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.physics._tensors import TensorLike
from keras_pnn.physics.tuning.base import Tuning

# How far below 0 a measured transmission may be.
_BELOW_ZERO = 0.25


def has_negative(tuning: Tuning) -> bool:
    """Tells whether weights are negative beyond the noise of a measurement."""
    return tuning.weight_range[0] < -_BELOW_ZERO


class SignedCurve:
    """Weights 2 T − 1 of a tuning with weights T from 0 to 1."""

    def __init__(self, tuning: Tuning):
        if has_negative(tuning):
            low, high = tuning.weight_range
            expected = (
                "false for a tuning with negative weights: it takes one port alone, as "
                "HeaterTuning(port='through')"
            )
            raise _checks.error("signed", expected, f"weights in [{low:g}, {high:g}]")
        self._tuning = tuning

    @property
    def weight_range(self) -> tuple[float, float]:
        """Lowest and highest weight."""
        low, high = self._tuning.weight_range
        return 2 * low - 1, 2 * high - 1

    def weight(self, *arguments: TensorLike) -> tf.Tensor:
        """See `Tuning.weight`."""
        return 2 * self._tuning.weight(*arguments) - 1

    def row_weight(self, *arguments: TensorLike) -> tf.Tensor:
        """See `Tuning.row_weight`."""
        return 2 * self._tuning.row_weight(*arguments) - 1

    def control(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.control`."""
        return self._tuning.control((np.asarray(weight, "float64") + 1) / 2)

    def clip(self, weight: TensorLike) -> np.ndarray:
        """See `Tuning.clip`."""
        return 2 * self._tuning.clip((np.asarray(weight, "float64") + 1) / 2) - 1
