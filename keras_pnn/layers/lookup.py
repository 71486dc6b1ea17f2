"""Find the controls, imperfections and weights of a model by name."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterable

import keras

from keras_pnn import _checks, _keras
from keras_pnn.layers.belonging import place_of
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.quantity import Quantity
from keras_pnn.physics.tuning import MeasuredTuning, RingTunings

# How variables are selected, see `select_variables`.
Selection = str | Iterable[str] | Callable[[keras.Variable], bool]


def physical_layers(model: keras.layers.Layer) -> list[PhysicalLayer]:
    """Returns the physical layers of a model, wrapped or not, in order.

    Args:
        model: a model, or a layer.

    Returns:
        A list of layers, each once.

    Example:

    >>> for layer in pnn.layers.physical_layers(model):
    ...     print(layer.name, list(layer.controls), list(layer.imperfections))
    """
    return [la for la in _keras.flat_layers(model) if isinstance(la, PhysicalLayer)]


def controls_of(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the trainable controls of a model's physical layers, in order.

    Args:
        model: a built model, or a layer.

    Returns:
        A list of variables.

    Example:

    >>> count = sum(v.shape.num_elements() for v in pnn.layers.controls_of(model))
    """
    return [
        v for la in physical_layers(model) for v in la.controls.values() if v.trainable
    ]


def imperfections_of(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the imperfections of a model's physical layers, in order."""
    return [v for la in physical_layers(model) for v in la.imperfections.values()]


def left_curves(model: keras.layers.Layer) -> str:
    """Returns a hint for NaN in models with measured curves, `""` in others."""
    measured = [
        repr(layer.name)
        for layer in physical_layers(model)
        if isinstance(getattr(layer, "tuning", None), MeasuredTuning | RingTunings)
    ]
    if not measured:
        return ""
    return (
        f"Rings of {', '.join(measured)} have probably left the measured curve of "
        "their tuning, which is not extrapolated. Raise its `margin=` to at least 4 "
        "standard deviations (4σ) of the resonance shift in nm, or reduce the shift."
    )


def quantities(model: keras.layers.Layer) -> list[Quantity]:
    """Returns the quantities that a device may set: imperfections and weights."""
    counts: dict[str, int] = {}
    found = []
    for layer in _keras.flat_layers(model):
        masks = {}
        own = []
        if isinstance(layer, PhysicalLayer):
            own = [layer.quantity(name) for name in layer.imperfections]
            masks = {id(v): layer.quantity(n).mask for n, v in layer.controls.items()}
        own += [
            Quantity(layer, v.name, v, mask=masks.get(id(v)))
            for v in _keras.own_trainable(layer)
        ]
        for quantity in own:
            index = counts.get(quantity.name, 0)
            counts[quantity.name] = index + 1
            found.append(dataclasses.replace(quantity, index=index))
    return found


def find(model: keras.layers.Layer, name: str, weights: bool = False) -> list[Quantity]:
    """Returns the quantities that a name addresses.

    A name means an imperfection of every layer that has it (`"temperature"`) or of one
    layer (`"mrr_bank_1/temperature"`), an alias in which a layer accepts deviations
    (`"splitter_imbalance"`), all controls that may be stuck (`"stuck"`) or, if
    `weights`, a trainable variable (`"kernel"`).
    """
    layer_name, _, short = str(name).rpartition("/")
    candidates = [q for q in quantities(model) if weights or q.nominal is not None]
    found = []
    for quantity in candidates:
        if layer_name not in ("", quantity.layer.name):
            continue
        aliases = getattr(quantity.layer, "aliases", {})
        meant, convert = aliases.get(short, (short, None))
        if quantity.name == meant or (short == "stuck" and quantity.holds):
            found.append(dataclasses.replace(quantity, convert=convert))
    if not found:
        names = [q.name for q in candidates] + [q.path for q in candidates]
        kind = "An imperfection or a weight" if weights else "An imperfection"
        similar = difflib.get_close_matches(str(name), names, 1)
        meant = f"Did you mean {similar[0]!r}? " if similar else ""
        raise ValueError(
            f"{kind} must be one of the model's: "
            f"{', '.join(dict.fromkeys(names)) or 'none (is the model built?)'}. "
            f"{place_of(short)}{meant}Received: {name!r}"
        )
    return found


def find_gradual(model: keras.layers.Layer, name: str) -> list[Quantity]:
    """Returns the imperfections that `find` does; raises ValueError for stuck ones."""
    found = find(model, name)
    if any(q.holds for q in found):
        expected = "one that moves gradually; `Variation(stuck=…)` draws what is stuck"
        raise _checks.error("imperfection", expected, repr(name))
    return found


def common_unit(found: list[Quantity]) -> str:
    """Returns the common unit of amounts of quantities, `""` if there is none."""
    # An alias, such as a power imbalance, is not in the variable's unit.
    plain = all(q.convert is None and q.nominal is not None for q in found)
    units = {q.unit for q in found}
    return units.pop() if plain and len(units) == 1 else ""


def architecture(
    model: keras.layers.Layer, names: Iterable[str]
) -> dict[str, list[list[int]]]:
    """Returns the shapes of the model's variables of the given names, in order."""
    shapes: dict[str, list[list[int]]] = {name: [] for name in names}
    for quantity in quantities(model):
        if quantity.name in shapes:
            shapes[quantity.name].append([int(n) for n in quantity.variable.shape])
    return shapes


def check_selection(argument: str, which: Selection) -> Selection:
    """Checks and returns a selection: a predicate, a string or several strings."""
    if callable(which) or isinstance(which, str):
        return which
    names = tuple(which) if isinstance(which, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names):
        expected = "'controls', 'all', names or patterns, or a predicate on variables"
        raise _checks.error(argument, expected, _checks.short(which))
    return names


def select_variables(
    model: keras.layers.Layer, which: Selection, argument: str = "variables"
) -> list[keras.Variable]:
    """Returns the variables for an ascent or a Hessian.

    `which` is `"controls"`, the trainable controls of physical layers; `"all"`, the
    trainable variables; a name or pattern of trainable variables and imperfections, of
    all layers (`"control"`) or of some (`"mrr_bank_*/control"`); several of these; or a
    predicate on trainable variables and imperfections. Errors call it `argument`.
    """
    which = check_selection(argument, which)
    # `<name>_stuck` is not a candidate, as stuck controls do not move.
    known = [q for q in quantities(model) if q.nominal is not None and not q.holds]
    candidates = [*model.trainable_variables, *(q.variable for q in known)]
    if callable(which):
        selected = [v for v in candidates if which(v)]
        if not selected:
            raise _none(model, argument, which, "The predicate selected nothing.")
        return selected
    layers = {id(q.variable): q.layer.name for q in quantities(model)}
    found = {}
    for name in [which] if isinstance(which, str) else which:
        matching = _matching(model, argument, name, candidates, layers)
        found |= {id(v): v for v in matching}
    return list(found.values())


def _matching(model, argument: str, name: str, candidates: list, layers: dict) -> list:
    """Returns the variables that one string selects."""
    if name == "controls":
        found, hint = controls_of(model), ""
    elif name == "all":
        found, hint = model.trainable_variables, "The model has none."
    else:
        paths = [f"{layers.get(id(v), model.name)}/{v.name}" for v in candidates]
        found = [
            v
            for v, path in zip(candidates, paths, strict=True)
            if fnmatch.fnmatchcase(path if "/" in name else v.name, name)
        ]
        known = dict.fromkeys([*(v.name for v in candidates), *paths])
        hint = f"It has: {', '.join(known)}."
    if not found and name == "controls":
        raise ValueError(
            f"Model '{model.name}' has no physical layer with controls that train. "
            f"Argument `{argument}` must then be 'all', names or patterns of variables "
            f"or a predicate on them. Received: {name!r}"
        )
    if not found:
        raise _none(model, argument, name, hint)
    return found


def _none(model, argument: str, which, hint: str) -> ValueError:
    return ValueError(
        f"Argument `{argument}` must be 'controls', 'all', names or patterns of "
        f"variables of model '{model.name}', or a predicate on them. {hint} "
        f"Received: {which!r}"
    )
