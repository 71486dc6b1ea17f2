"""The imperfections of a model that a misalignment moves: eq. 5, carried out."""

import dataclasses
import zlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.layers.lookup import find
from keras_pnn.layers.quantity import Quantity
from keras_pnn.training.adversary import (
    AdversaryRule,
    Autodiff,
    FiniteDifference,
)
from keras_pnn.training.gradients.base import summed

# Above this many components a training step would be passes and little else.
MOST_COMPONENTS = 16


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One θ: an imperfection of a layer, or a value that several layers share.

    Args:
        name: as the user gave it.
        key: the imperfection's name without the layer, and 0 where layers share it,
            else 1 + the layer's place among those that have it. Draws go by it:
            a layer's automatic name differs from run to run.
        rule: where dL/dθ comes from, and how far θ goes.
        variables: what moves, all of one shape, by one offset.
        radius: in the shape of the variables, 0 where nothing moves.
    """

    name: str
    key: tuple[str, int]
    rule: AdversaryRule
    variables: list[keras.Variable]
    radius: np.ndarray

    @property
    def components(self) -> list[tuple[int, ...]]:
        """Indices of what moves."""
        return [tuple(index) for index in np.argwhere(self.radius > 0)]

    @property
    def passes(self) -> int:
        """Extra forward passes per training step."""
        return self.rule.passes_per_component * len(self.components)

    @property
    def dtype(self) -> str:
        """In which losses are subtracted."""
        return keras.backend.result_type("float32", self.variables[0].dtype)

    def moved(self, offset, present: Callable) -> list:
        """Returns (variable, value) pairs at θ0 + offset."""
        return [(v, present(v) + tf.cast(offset, v.dtype)) for v in self.variables]

    def fraction(self, seed, purpose: str):
        """Returns u of [0, 1), a pure function of seed, key and purpose."""
        name, index = self.key
        code = zlib.crc32(f"misalignment/{name}/{purpose}".encode()) & 0x7FFFFFFF
        fold_in = tf.random.experimental.stateless_fold_in
        own = fold_in(fold_in(seed, code, alg="philox"), index, alg="philox")
        # From whole numbers: XLA draws other floats than TensorFlow does.
        bits = tf.random.stateless_uniform(
            (), own, minval=None, maxval=None, dtype="uint32", alg="philox"
        )
        return tf.cast(tf.bitwise.right_shift(bits, 8), self.dtype) * 2.0**-24


def parameters(
    model: keras.Model, rules: dict[str, AdversaryRule], perturbed=()
) -> list[Parameter]:
    """Finds in a model what is to be misaligned.

    Args:
        model: a built model.
        rules: name of an imperfection → rule, as `find_quantities` takes names.
        perturbed: variables that another ascent moves.

    Returns:
        The parameters of which at least one component moves: one for each name, or
        one for each layer where `Autodiff` moves layers of different shapes.

    Raises:
        ValueError: a name is unknown, addresses a variable that is moved otherwise
            too, or variables of different shapes that cannot be moved by the rule; a
            radius or a step has another shape, or reaches values that do not exist;
            or finite differences would take too many passes.
    """
    taken = {id(v): "`perturb`" for v in perturbed}
    found = []
    for name, rule in rules.items():
        quantities = find(model, name)
        for variable in (q.variable for q in quantities):
            if id(variable) in taken:
                raise ValueError(
                    "An imperfection must be moved once. Received: "
                    f"{taken[id(variable)]} and misalignment {name!r}, which give it "
                    f"twice: {variable.path}"
                )
            taken[id(variable)] = f"misalignment {name!r}"
        shapes = {tuple(q.variable.shape) for q in quantities}
        if len(shapes) == 1:
            found.append(_parameter(model, name, rule, quantities))
            continue
        if not isinstance(rule, Autodiff) or np.ndim(rule.radius):
            raise ValueError(
                f"Layers that differ in the shape of {name!r} cannot be moved by one "
                f"value: name the layers singly, '<layer>/{name}', or use Autodiff "
                "with a number as radius, which moves each by its own. "
                f"Received: {rule!r} for the shapes {sorted(shapes)}"
            )
        found += [_parameter(model, name, rule, [q], own=True) for q in quantities]
    return [p for p in found if p.components]


def extra_passes(parameters: list[Parameter], measured: bool = False) -> int:
    """Returns how many forward passes finite differences add to a training step.

    Args:
        parameters: what is misaligned.
        measured: whether the first pass's loss is a device's, so that forward
            differences need the model's own at θ0.
    """
    at_origin = 1 if measured and _forward(parameters) else 0
    return at_origin + sum(p.passes for p in parameters)


def by_autodiff(parameters: list[Parameter]) -> list[keras.Variable]:
    """Returns the variables whose derivative the first pass gives."""
    return [v for p in parameters if isinstance(p.rule, Autodiff) for v in p.variables]


def misaligned(
    parameters: list[Parameter],
    present: Callable,
    loss: Callable,
    origin,
    gradients: dict,
    seed,
) -> list:
    """Returns (variable, θ_adv) pairs, eq. 5.

    Args:
        parameters: what is misaligned.
        present: a variable → θ0, the value that the first pass saw.
        loss: (variable, value) pairs → the loss there.
        origin: the loss at θ0, or `None` to have it from `loss` where it is needed.
        gradients: id of a variable → dL/dθ, for the parameters of `Autodiff`.
        seed: two integers, a tensor; draws are a pure function of it.
    """
    if origin is None and _forward(parameters):
        origin = loss([])
    derivatives = [
        _difference(p, present, loss, origin, seed)
        if isinstance(p.rule, FiniteDifference)
        else _autodiff(p, gradients)
        for p in parameters
    ]
    pairs = []
    # Added over replicas, so that all of them go to one θ_adv.
    for parameter, gradient in zip(parameters, summed(derivatives), strict=True):
        radius = tf.constant(parameter.radius, parameter.dtype)
        if parameter.rule.sample_radius:
            radius *= parameter.fraction(seed, "radius")
        offset = parameter.rule.move(gradient, radius)
        pairs += parameter.moved(offset, present)
    return pairs


def _parameter(model, name, rule, quantities, own=False) -> Parameter:
    layer_name, _, short = name.rpartition("/")
    variables = [q.variable for q in quantities]
    position = 0
    if layer_name or own:
        ids = [id(q.variable) for q in find(model, short)]
        position = 1 + ids.index(id(variables[0]))
    shape = tuple(variables[0].shape)
    radius = _shaped(name, "radius", rule.radius, shape)
    radius = np.where(_exists(quantities), radius, 0.0)
    parameter = Parameter(name, (short, position), rule, variables, radius)
    if rule.normalize:
        _check_reach(name, "radius", radius, quantities)
    if isinstance(rule, FiniteDifference):
        step = _shaped(name, "step", rule.step, shape)
        if rule.scheme == "central":
            _check_reach(name, "step", np.where(radius > 0, step, 0.0), quantities)
        if len(parameter.components) > MOST_COMPONENTS:
            raise ValueError(
                f"Finite differences of {name!r} would take {parameter.passes} extra "
                f"passes in each training step; at most {MOST_COMPONENTS} components "
                "can be differentiated so. Use pnn.Autodiff, which takes none, or "
                "set radii of 0. Received: a radius above 0 for "
                f"{len(parameter.components)} components"
            )
    return parameter


def _exists(quantities: list[Quantity]) -> np.ndarray:
    """Which elements at least one of the quantities' layers has."""
    found = [q.mask for q in quantities]
    return np.True_ if any(m is None for m in found) else np.any(found, axis=0)


def _check_reach(name: str, argument: str, reach, quantities: list[Quantity]) -> None:
    """Raises ValueError if going down from nominal by `reach` leaves what exists."""
    for q in quantities:
        # In the variable's precision, in which the sum is taken.
        dtype = q.variable.dtype
        if q.lower_bound is None:
            continue
        if not ((q.nominal - reach.astype(dtype)).astype(dtype) > q.lower_bound).all():
            raise ValueError(
                f"`{argument}` of {name!r} must be below "
                f"{q.nominal - q.lower_bound:g}, as its nominal value is "
                f"{q.nominal:g} and its values are above {q.lower_bound:g}. "
                f"Received: {float(np.max(reach)):g}"
            )


def _difference(parameter, present, loss, origin, seed):
    """dL/dθ, component by component."""
    rule, dtype = parameter.rule, parameter.dtype
    steps = _shaped(parameter.name, "step", rule.step, parameter.radius.shape)
    # U(0, 1], never 0.
    fraction = 1.0 - parameter.fraction(seed, "step") if rule.sample_step else 1.0

    def loss_at(offset):
        return tf.cast(loss(parameter.moved(offset, present)), dtype)

    terms = []
    for index in parameter.components:
        direction = np.zeros(parameter.radius.shape)
        direction[index] = 1.0
        direction = tf.constant(direction, dtype)
        step = tf.constant(steps[index], dtype) * fraction
        ahead = loss_at(step * direction)
        if rule.scheme == "central":
            slope = (ahead - loss_at(-step * direction)) / (2 * step)
        else:
            slope = (ahead - tf.cast(origin, dtype)) / step
        terms.append(slope * direction)
    return tf.add_n(terms)


def _autodiff(parameter, gradients):
    """dL/dθ of a value that several layers share: the sum over the layers."""
    found = [gradients[id(v)] for v in parameter.variables]
    zero = tf.zeros(parameter.radius.shape, parameter.dtype)
    return tf.add_n([zero, *(tf.cast(g, zero.dtype) for g in found if g is not None)])


def _forward(parameters) -> bool:
    return any(getattr(p.rule, "scheme", "") == "forward" for p in parameters)


def _shaped(name: str, argument: str, value, shape) -> np.ndarray:
    array = np.asarray(value)
    if array.shape not in ((), shape):
        raise ValueError(
            f"`{argument}` of {name!r} must be a number or have the shape {shape} of "
            f"the imperfection. Received: shape {array.shape}"
        )
    return np.broadcast_to(array, shape)
