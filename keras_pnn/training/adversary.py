"""Move imperfections of a model to where the loss is higher: eq. 5."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.devices.draws import folded, whole_numbers
from keras_pnn.layers.context import Overrides
from keras_pnn.layers.lookup import find_gradual
from keras_pnn.layers.quantity import Quantity
from keras_pnn.training.adversary_rules import (
    AdversaryRule,
    Autodiff,
    FiniteDifference,
)
from keras_pnn.training.gradients.base import summed

# Above this many components, extra passes would dominate a training step.
MOST_COMPONENTS = 16


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One θ of eq. 5: an imperfection of a layer, or a value that layers share.

    Args:
        name: the imperfection's name without the layer.
        place: 0 if all layers share it, else 1 + the layer's index among the layers
            that have it. Draws depend on name and place, as automatic layer names
            differ from run to run.
        rule: how dL/dθ is computed, and how far θ moves.
        quantities: the quantities that move by one offset; all have the same shape.
        radius, step: arrays of that shape; the radius is 0 where nothing moves.
            `Autodiff` has no step.
    """

    name: str
    place: int
    rule: AdversaryRule
    quantities: list[Quantity]
    radius: np.ndarray
    step: np.ndarray | None = None

    @property
    def components(self) -> list[tuple[int, ...]]:
        """Indices of the components that move."""
        return [tuple(index) for index in np.argwhere(self.radius > 0)]

    @property
    def passes(self) -> int:
        """Extra forward passes per training step."""
        return self.rule.passes_per_component * len(self.components)

    @property
    def dtype(self) -> str:
        """The dtype in which losses are subtracted."""
        return keras.backend.result_type("float32", self.quantities[0].variable.dtype)

    def moved(self, offset, present: Overrides) -> Overrides:
        """Returns the variables' values at θ0 + offset."""
        return Overrides(
            (q.variable, present.value(q.variable) + _deviation(q, offset))
            for q in self.quantities
        )

    def offset(self, slope, seed) -> tf.Tensor:
        """Returns θ_adv − θ0 for dL/dθ."""
        radius = tf.constant(self.radius, self.dtype)
        if self.rule.sample_radius:
            radius *= self._fraction(seed, "radius")
        return self.rule.move(slope, radius)

    def difference(self, present: Overrides, loss: Callable, origin, seed):
        """Returns dL/dθ by finite differences, component by component."""
        # U(0, 1], never 0.
        sampled = self.rule.sample_step
        fraction = 1.0 - self._fraction(seed, "step") if sampled else 1.0

        def loss_at(offset):
            return tf.cast(loss(self.moved(offset, present)), self.dtype)

        terms = []
        for index in self.components:
            direction = np.zeros(self.radius.shape)
            direction[index] = 1.0
            direction = tf.constant(direction, self.dtype)
            step = tf.constant(self.step[index], self.dtype) * fraction
            ahead = loss_at(step * direction)
            if self.rule.scheme == "central":
                slope = (ahead - loss_at(-step * direction)) / (2 * step)
            else:
                slope = (ahead - tf.cast(origin, self.dtype)) / step
            terms.append(slope * direction)
        return tf.add_n(terms)

    def derivative(self, gradient: Callable):
        """Returns dL/dθ of the first pass: the sum over the layers that share θ."""
        slopes = [_by_name(q, gradient(q.variable)) for q in self.quantities]
        zero = tf.zeros(self.radius.shape, self.dtype)
        return tf.add_n([zero, *(tf.cast(slope, zero.dtype) for slope in slopes)])

    def _fraction(self, seed, purpose: str):
        """Returns u in [0, 1), a pure function of seed, name, place and purpose."""
        own = folded(seed, f"misalignment/{self.name}/{purpose}", self.place)
        bits = whole_numbers((), own)
        return tf.cast(tf.bitwise.right_shift(bits, 8), self.dtype) * 2.0**-24


class Adversary:
    """Moves imperfections of a model by eq. 5.

    It has one `Parameter` per name with a component that moves, or one per layer where
    `Autodiff` moves layers of different shapes. The names must not include `perturbed`
    variables, which the ascent moves.
    """

    def __init__(self, model, rules: dict[str, AdversaryRule], perturbed=()):
        self.parameters: list[Parameter] = []
        movers = Overrides((v, "`perturb`") for v in perturbed)
        for name, rule in rules.items():
            quantities = find_gradual(model, name)
            mover = f"adversarial[{name!r}]"
            for q in quantities:
                if q.variable in movers:
                    raise ValueError(
                        "An imperfection must be moved once. Received: "
                        f"{movers[q.variable]} and {mover}, which both move {q.path}"
                    )
            movers = movers.merged((q.variable, mover) for q in quantities)
            shapes = {tuple(q.variable.shape) for q in quantities}
            singly = len(shapes) > 1
            if singly and (not isinstance(rule, Autodiff) or np.ndim(rule.radius)):
                raise ValueError(
                    f"Layers that differ in the shape of {name!r} cannot be moved by "
                    f"one value: name each, '<layer>/{name}', or use Autodiff with a "
                    "number as radius, which moves each by its own. "
                    f"Received: {rule!r} for the shapes {sorted(shapes)}"
                )
            for group in [[q] for q in quantities] if singly else [quantities]:
                self.parameters.append(_parameter(name, rule, group, singly))
        self.parameters = [p for p in self.parameters if p.components]

    def __bool__(self) -> bool:
        return bool(self.parameters)

    @property
    def differentiated(self) -> list[keras.Variable]:
        """The variables whose derivative the first pass must give."""
        by_autodiff = (p for p in self.parameters if isinstance(p.rule, Autodiff))
        return [q.variable for p in by_autodiff for q in p.quantities]

    @property
    def needs_origin(self) -> bool:
        """Whether a forward difference needs the loss at θ0."""
        rules = (p.rule for p in self.parameters)
        return any(getattr(rule, "scheme", "") == "forward" for rule in rules)

    @property
    def passes(self) -> int:
        """Forward passes that finite differences add, except the one at θ0."""
        return sum(p.passes for p in self.parameters)

    def moved(
        self, present: Overrides, loss: Callable, origin, gradient: Callable, seed
    ) -> Overrides:
        """Returns the imperfections at θ_adv; draws are a pure function of the seed.

        Args:
            present: the values of the first pass, including θ0.
            loss: `Overrides` → the loss with them in place of θ0.
            origin: the loss at θ0, or `None` to compute it by `loss` if needed.
            gradient: variable → dL/dθ of the first pass, for `differentiated`.
        """
        if origin is None and self.needs_origin:
            origin = loss(Overrides())
        slopes = [
            p.difference(present, loss, origin, seed)
            if isinstance(p.rule, FiniteDifference)
            else p.derivative(gradient)
            for p in self.parameters
        ]
        found = Overrides()
        # Summed over replicas, so that all use the same θ_adv.
        for parameter, slope in zip(self.parameters, summed(slopes), strict=True):
            offset = parameter.offset(slope, seed)
            found = found.merged(parameter.moved(offset, present))
        return found


def _parameter(name, rule, quantities: list[Quantity], singly: bool) -> Parameter:
    layer_name, _, short = name.rpartition("/")
    place = 1 + quantities[0].index if layer_name or singly else 0
    shape = tuple(quantities[0].variable.shape)
    argument = f"adversarial[{name!r}].radius"
    radius = _checks.array(argument, rule.radius, shape)
    radius = np.where(np.any([q.exists for q in quantities], axis=0), radius, 0.0)
    if rule.normalize:
        _check_reach(argument, quantities, radius)
    if isinstance(rule, Autodiff):
        return Parameter(short, place, rule, quantities, radius)
    argument = f"adversarial[{name!r}].step"
    step = _checks.array(argument, rule.step, shape)
    if rule.scheme == "central":
        _check_reach(argument, quantities, np.where(radius > 0, step, 0.0))
    parameter = Parameter(short, place, rule, quantities, radius, step)
    count = len(parameter.components)
    if count > MOST_COMPONENTS:
        raise ValueError(
            f"Finite differences of {name!r} would take {parameter.passes} extra "
            f"passes in each training step; at most {MOST_COMPONENTS} components "
            "can be differentiated so. Use pnn.Autodiff, which takes none, or "
            f"set radii of 0. Received: a radius above 0 for {count} components"
        )
    return parameter


def _check_reach(argument: str, quantities: list[Quantity], reach: np.ndarray) -> None:
    """Raises ValueError if `reach` from nominal leaves a quantity's range."""
    for quantity in quantities:
        if quantity.convert is not None:
            # An alias enforces its own range.
            continue
        try:
            quantity.check(-reach)
            quantity.check(reach)
        except ValueError as error:
            message = f"Argument `{argument}` reaches too far: {error}"
            raise ValueError(message) from None


def _deviation(quantity: Quantity, amount) -> tf.Tensor:
    """Converts a deviation of the named quantity to its variable's unit."""
    dtype = quantity.variable.dtype
    return tf.cast(quantity.deviation(tf.cast(amount, dtype)), dtype)


def _by_name(quantity: Quantity, gradient) -> tf.Tensor:
    """Converts dL/dθ from the variable's unit to that of the named quantity."""
    if quantity.convert is None:
        return gradient
    zero = tf.zeros_like(gradient)
    with tf.GradientTape() as tape:
        tape.watch(zero)
        deviation = _deviation(quantity, zero)
    return tape.gradient(deviation, zero, output_gradients=gradient)
