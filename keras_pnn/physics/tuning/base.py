"""Define the interface of tuning curves: control to weight, and back."""

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._signatures import Configured
from keras_pnn.physics._tensors import TensorLike

# Weights and controls rounded to float32 still count as within range.
WEIGHT_TOLERANCE = 1e-6
CONTROL_TOLERANCE = 1e-6


def width_factor(error: tf.Tensor) -> tf.Tensor:
    """Returns 1 + `half_width_error`; in a graph, NaN where this is not above 0."""
    _checks.tensor("half_width_error", error, lambda e: e > -1, "above -1")
    return 1 + tf.where(error > -1, error, tf.constant(float("nan"), error.dtype))


class Tuning(Configured):
    """Base class of tuning curves, from the control of a ring to its weight.

    Serialisable like a Keras initializer. A subclass sets `unit`, implements
    `control_range`, `weight_range`, `heater_shift`, `weight` and `control`, and
    overrides further methods where it can; also `get_config`, if an argument of its
    `__init__` is not an attribute. Controls are float tensors in `unit`, never
    negative; results have their shape.

    Attributes:
        unit: `"nm"` (the control is a detuning), or `"mA"`, `"V"` or `"mW"` (current,
            voltage or power of a heater).

    Example:

    >>> tuning = pnn.LorentzianTuning(half_width=0.15)
    >>> float(tuning.weight(0.15)), tuning.unit
    (0.0, 'nm')
    """

    unit = "nm"

    @property
    def control_range(self) -> tuple[float, float]:
        """Lowest and highest control, in `unit`; the highest may be infinite."""
        raise NotImplementedError

    @property
    def training_range(self) -> tuple[float, float]:
        """Lowest and highest control that layers train within, in `unit`."""
        return self.control_range

    @property
    def weight_range(self) -> tuple[float, float]:
        """Lowest and highest weight over `control_range`.

        If the highest control is infinite, one end may be a limit that none reaches.
        """
        raise NotImplementedError

    def heater_shift(self, control: TensorLike) -> tf.Tensor:
        """Computes the resonance shift that the ring's own heater causes, in nm."""
        raise NotImplementedError

    def detuning(self, control: TensorLike) -> tf.Tensor:
        """Computes the detuning, the ring's resonance minus its laser, in nm."""
        return self.heater_shift(control)

    def heater_power(self, control: TensorLike) -> tf.Tensor | None:
        """Computes the power of the heater in mW; `None` for a tuning without one."""

    def weight(
        self,
        control: TensorLike,
        shift: TensorLike = 0.0,
        half_width_error: TensorLike = 0.0,
    ) -> tf.Tensor:
        """Computes the weight at a control, with the imperfections of the ring.

        Args:
            control: Float tensor, in `unit`.
            shift: Float tensor. Added to the detuning, in nm.
            half_width_error: Float tensor. Relative error: the half-width is
                `(1 + half_width_error)` times the nominal one.

        Returns:
            Float tensor in the arguments' broadcast shape, twice differentiable. In a
            graph, NaN where `half_width_error` is not above -1.

        Raises:
            ValueError: If, eagerly, a value is NaN or `half_width_error` is not above
                -1.
        """
        raise NotImplementedError

    def control(self, weight: TensorLike) -> np.ndarray:
        """Solves for the smallest control that gives a weight.

        Args:
            weight: Float array or eager tensor.

        Returns:
            Float64 array of the shape of `weight`, in `unit`.

        Raises:
            ValueError: If a weight is NaN, or outside `weight_range` by more than
                1e-6, a margin for weights rounded to float32.
        """
        raise NotImplementedError

    def clip(self, weight: TensorLike) -> np.ndarray:
        """Clips weights to those that `control` can solve for; raises if one is NaN."""
        return np.clip(self._known(weight), *self.weight_range)[()]

    def placed(self, row: np.ndarray, column: np.ndarray, width: int) -> "Tuning":
        """Returns the tuning for rings at given places; here the same for all rings.

        `row` and `column` are integer arrays in the shape of the controls: the places
        on a bank of `width` columns.
        """
        return self

    def row_weight(
        self, detuning: TensorLike, half_width_error: TensorLike = 0.0
    ) -> tf.Tensor:
        """Computes the weights of a row of rings on one bus.

        Args:
            detuning: Float tensor of shape `(..., rings, channels)`: each ring's
                resonance minus each channel's laser, in nm.
            half_width_error: Float tensor that broadcasts against `detuning`; a
                value per ring has the shape `(..., rings, 1)`.

        Returns:
            Float tensor of shape `(..., channels)`.

        Raises:
            ValueError: If the tuning cannot model a row.
        """
        raise ValueError(
            "The row model needs a ring's transmission at any detuning: "
            "`LorentzianTuning` or `HeaterTuning`. "
            f"Received: {type(self).__name__}, which cannot model a row"
        )

    def validate(self, control: TensorLike) -> None:
        """Checks controls before they are programmed or loaded.

        Args:
            control: Float array or tensor, in `unit`. Tensors of a graph pass.

        Raises:
            ValueError: If a control is NaN, infinite or negative, or outside
                `control_range` by more than 1e-6 of its upper end.
        """
        low, high = self.control_range
        room = CONTROL_TOLERANCE * max(abs(low), high if np.isfinite(high) else 0.0)
        _checks.tensor(
            "control",
            control,
            lambda c: np.isfinite(c) & (c >= max(low - room, 0)) & (c <= high + room),
            f"finite and in [{low:g}, {high:g}] {self.unit}",
        )

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash(repr(self))

    def __repr__(self):
        arguments = (f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({', '.join(arguments)})"

    def _reachable(self, weight):
        """Checks that weights lie in `weight_range`; returns them in float64."""
        weight = self._known(weight)
        low, high = self.weight_range
        first, last = self._attained()
        _checks.tensor(
            "weight",
            weight,
            lambda w: (
                ((w >= low - WEIGHT_TOLERANCE) if first else (w > low))
                & ((w <= high + WEIGHT_TOLERANCE) if last else (w < high))
            ),
            f"in {'[' if first else '('}{low:g}, {high:g}{']' if last else ')'}",
        )
        return np.clip(weight, low, high)

    def _attained(self) -> tuple[bool, bool]:
        """Returns whether finite controls reach the lowest and the highest weight."""
        return True, bool(np.isfinite(self.control_range[1]))

    @staticmethod
    def _known(weight):
        _checks.not_nan("weight", weight)
        array = _checks.concrete(weight)
        if array is None:
            raise _checks.error("weight", "known eagerly", "a tensor of a graph")
        return np.asarray(array, np.float64)
