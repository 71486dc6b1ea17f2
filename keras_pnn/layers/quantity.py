"""Describe a control, an imperfection or a weight: variable, unit, nominal value."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn._display import Brief

_DRIFT = "_keras_pnn_drift"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Quantity(Brief):
    """A variable of a model, what it means, and how it is addressed.

    Args:
        layer: the layer that owns it.
        name: its name within the layer (`"resonance_shift"`, `"kernel"`).
        variable: the `keras.Variable` that holds it.
        unit: its unit, such as `"nm"`; `""` for a pure number.
        nominal: its value in the design; `None` for a weight, whose design is its
            present value.
        index: its place among the model's variables of that name.
        shared: whether one value serves the whole chip (a temperature).
        mask: which elements the hardware has, broadcast to the variable; `None` for
            all. The others keep their nominal value: they are neither drawn nor
            written to files.
        lower_bound: a bound that its values must exceed; `None` for no bound.
        upper_bound: a bound that its values must stay below, likewise.
        holds: the control whose stuck elements it describes, see
            `PhysicalLayer.add_stuck`; `None` for all other quantities.
        convert: a function from a deviation in an alias (a power imbalance) to one
            of the variable (an angle); `None` if the variable's own name was used.
    """

    layer: keras.layers.Layer
    name: str
    variable: keras.Variable
    unit: str = ""
    nominal: float | None = None
    index: int = 0
    shared: bool = False
    mask: np.ndarray | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None
    holds: str | None = None
    convert: Callable | None = None

    @property
    def path(self) -> str:
        """The name that addresses this one variable: `"mrr_bank_1/temperature"`."""
        return f"{self.layer.name}/{self.name}"

    @property
    def exists(self) -> np.ndarray:
        """Which elements the hardware has, in the variable's shape."""
        mask = True if self.mask is None else self.mask
        return np.broadcast_to(mask, tuple(self.variable.shape))

    @property
    def room(self) -> tuple[float, float]:
        """The bounds as deviations from nominal, infinite where there is none."""
        low, high = self.lower_bound, self.upper_bound
        return (
            -math.inf if low is None else low - self.nominal,
            math.inf if high is None else high - self.nominal,
        )

    def deviation(self, amount) -> tf.Tensor:
        """Returns the variable's deviation for an amount of the named quantity."""
        if self.convert is not None:
            amount = tf.cast(self.convert(amount), self.variable.dtype)
        if self.mask is None:
            return amount
        return tf.where(self.mask, amount, tf.zeros_like(amount))

    def value(self, deviation) -> tf.Tensor:
        """Returns the variable's value at a deviation from its design."""
        base = self.nominal
        if base is None:
            base = tf.convert_to_tensor(self.variable)
        return base + tf.cast(deviation, self.variable.dtype)

    def added(self, deviation) -> tf.Tensor:
        """Returns the variable's present value plus a deviation."""
        return self.joined(tf.convert_to_tensor(self.variable), deviation)

    def scaled(self, deviation, factor) -> tf.Tensor:
        """Returns a deviation times a factor; stuck controls are not scaled."""
        if self.holds is not None:
            return deviation
        return tf.cast(factor, deviation.dtype) * deviation

    def joined(self, value, deviation) -> tf.Tensor:
        """Returns a value of the variable plus a deviation.

        A control that is stuck already stays at its value.
        """
        total = value + tf.cast(deviation, value.dtype)
        if self.holds is None:
            return total
        return tf.where(value[..., :1] > 0.5, value, total)

    @property
    def present(self) -> np.ndarray:
        """The deviation from nominal that the variable stores, in float64."""
        return np.asarray(self.variable).astype("float64") - self.nominal

    @property
    def drift(self) -> tf.Variable:
        """How far drift has moved the variable in the present step; 0 without drift.

        A device that measures has its own deviations in place of the model's, and adds
        this one.
        """
        # Kept with the variable, past Keras' tracking, as it is no state of the model.
        attributes = vars(self.variable)
        if _DRIFT not in attributes:
            # Created outside any graph, which would otherwise own it.
            with tf.init_scope():
                zeros = tf.zeros(self.variable.shape, self.variable.dtype)
                attributes[_DRIFT] = tf.Variable(zeros, trainable=False)
        return attributes[_DRIFT]

    def passing(self) -> tf.Tensor:
        """Returns how far the present step has moved the variable, for devices to add.

        This is the drift plus what the training step adds: a fresh `variation` and the
        adversary of eq. 5.
        """
        scoped = tf.convert_to_tensor(self.variable)
        # An empty scope overrides nothing, so that the stored value is read.
        with keras.StatelessScope():
            stored = tf.convert_to_tensor(self.variable)
        return scoped - stored + self.drift

    def check(self, deviation, way_out: str = "") -> None:
        """Raises an error if a deviation reaches a bound, in the variable's dtype.

        The deviation is in the variable's unit. Flags of stuck controls must be 0 or 1.
        `way_out` is a sentence for the message.
        """
        if self.holds is not None:
            flags = np.unique(np.asarray(deviation)[..., 0])
            if not set(flags) <= {0, 1}:
                expected = "0 or 1 in front of each value"
                raise _checks.error(self.path, expected, _checks.short(flags))
        sides = (
            ("above", self.lower_bound, np.greater),
            ("below", self.upper_bound, np.less),
        )
        for side, bound, is_within in sides:
            if bound is None:
                continue
            # Compared in the precision of the sum that the layer uses.
            deviation = np.asarray(deviation).astype(self.variable.dtype)
            values = (self.nominal + deviation).astype(self.variable.dtype)
            beyond = deviation[~is_within(values, bound)]
            if beyond.size:
                raise ValueError(
                    f"'{self.path}' must be {side} {bound:g}, so that its deviation "
                    f"from the nominal value {self.nominal:g} must be {side} "
                    f"{bound - self.nominal:g}. {way_out}Received: a deviation of "
                    f"{float(beyond[np.argmax(np.abs(beyond))]):g}"
                )
