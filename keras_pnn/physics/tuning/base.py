"""What every tuning curve offers: control to weight, and back."""

import numpy as np

from keras_pnn.physics._tensors import TensorLike, check, concrete

# Weights that were rounded to float32 still count as reachable.
WEIGHT_TOLERANCE = 1e-6
# So do controls that were rounded to float32.
CONTROL_TOLERANCE = 1e-6


class Tuning:
    """Base class: how the control of a ring sets its weight.

    Serialisable in the way of a Keras initializer. A subclass sets `unit`,
    implements `control_range`, `weight_range`, `heater_shift`, `weight`,
    `control` and `get_config`, and overrides the rest where it knows more.
    Controls are never negative.

    Attributes:
        unit: `"nm"` (the control is a detuning) or `"mA"` (a heater current).
    """

    unit = "nm"

    @property
    def control_range(self) -> tuple[float, float]:
        """Lowest and highest control, in `unit`; the highest may be infinite."""
        raise NotImplementedError

    @property
    def weight_range(self) -> tuple[float, float]:
        """Lowest and highest weight over `control_range`.

        Where the highest control is infinite, the highest weight is a limit
        that no finite control reaches.
        """
        raise NotImplementedError

    def heater_shift(self, control: TensorLike):
        """The resonance shift that the ring's own heater makes.

        Args:
            control: Float tensor, in `unit`.

        Returns:
            Float tensor. Shift in nm, in the shape of `control`.
        """
        raise NotImplementedError

    def detuning(self, control: TensorLike):
        """The ring's resonance minus its laser.

        Args:
            control: Float tensor, in `unit`.

        Returns:
            Float tensor. Detuning in nm, in the shape of `control`.
        """
        return self.heater_shift(control)

    def heater_power(self, control: TensorLike):
        """The electrical power of the heater.

        Args:
            control: Float tensor, in `unit`.

        Returns:
            Float tensor. Power in mW, in the shape of `control`; None where the
            tuning knows no heater.
        """

    def weight(
        self,
        control: TensorLike,
        shift: TensorLike = 0.0,
        half_width_error: TensorLike = 0.0,
    ):
        """The weight at a control, on a ring with the given imperfections.

        Args:
            control: Float tensor, in `unit`.
            shift: Float tensor. Added to the detuning, in nm.
            half_width_error: Float tensor. Relative: the half-width is
                `(1 + half_width_error)` times the design's.

        Returns:
            Float tensor in the arguments' broadcast shape, of their widest
            float dtype. Twice differentiable. In a graph, NaN where
            `half_width_error` is not above -1.

        Raises:
            ValueError: If a value known eagerly is NaN, or `half_width_error`
                is not above -1.
        """
        raise NotImplementedError

    def control(self, weight: TensorLike) -> np.ndarray:
        """The smallest non-negative control that gives a weight.

        Args:
            weight: Float array or eager tensor.

        Returns:
            Float64 array of the shape of `weight`, in `unit`.

        Raises:
            ValueError: If a weight is NaN or out of reach (by more than 1e-6,
                which leaves room for weights rounded to float32).
        """
        raise NotImplementedError

    def clip(self, weight: TensorLike) -> np.ndarray:
        """The nearest weight for which `control` has an answer.

        Args:
            weight: Float array or eager tensor.

        Returns:
            Float64 array of the shape of `weight`.

        Raises:
            ValueError: If a weight is NaN.
        """
        return np.clip(self._known("weight", weight), *self.weight_range)[()]

    def row_weight(self, detuning: TensorLike, half_width_error: TensorLike = 0.0):
        """The weights of a row of rings that all see all channels.

        Args:
            detuning: Float tensor of shape `(..., rings, channels)`: each
                ring's resonance minus each channel's laser, in nm.
            half_width_error: Float tensor that broadcasts against `detuning`;
                a value per ring has shape `(..., rings, 1)`.

        Returns:
            Float tensor of shape `(..., channels)`.

        Raises:
            ValueError: If the tuning cannot model a row.
        """
        raise ValueError(
            "The row model needs a ring's transmission at any detuning, which "
            "`LorentzianTuning` and `HeaterTuning` know. "
            f"Received: {type(self).__name__}, which cannot model a row"
        )

    def validate(self, control: TensorLike) -> None:
        """Checks controls that are about to be programmed or loaded.

        Args:
            control: Float array or tensor, in `unit`. Tensors of a graph pass.

        Raises:
            ValueError: If a control is NaN, infinite, negative or outside
                `control_range` (by more than 1e-6 of its size).
        """
        low, high = self.control_range
        room = CONTROL_TOLERANCE * max(abs(low), high if np.isfinite(high) else 0.0)
        check(
            "control",
            control,
            lambda c: np.isfinite(c) & (c >= max(low - room, 0)) & (c <= high + room),
            f"finite and in [{low:g}, {high:g}] {self.unit}",
        )

    def get_config(self) -> dict:
        """The arguments of `__init__`, as JSON values."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict):
        """Builds a tuning from what `get_config` returned."""
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash(repr(self))

    def __repr__(self):
        arguments = (f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({', '.join(arguments)})"

    def _reachable(self, weight):
        """The weights in float64, inside `weight_range`; raises elsewhere."""
        weight = self._known("weight", weight)
        low, high = self.weight_range
        attained = np.isfinite(self.control_range[1])
        check(
            "weight",
            weight,
            lambda w: (
                (w >= low - WEIGHT_TOLERANCE)
                & ((w <= high + WEIGHT_TOLERANCE) if attained else (w < high))
            ),
            f"within reach, in [{low:g}, {high:g}{']' if attained else ')'}",
        )
        return np.clip(weight, low, high)

    @staticmethod
    def _known(name, value):
        check(name, value, lambda v: ~np.isnan(v), "a number, not NaN")
        array = concrete(value)
        if array is None:
            raise ValueError(
                f"`{name}` must be known eagerly. Received: a tensor of a graph"
            )
        return np.asarray(array, np.float64)
