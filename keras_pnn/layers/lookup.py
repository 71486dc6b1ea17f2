"""Find the controls, imperfections and weights of a model by name."""

import dataclasses
from collections.abc import Callable, Iterable

import keras

from keras_pnn import _keras
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.quantity import Quantity


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


def quantities(model: keras.layers.Layer) -> list[Quantity]:
    """Returns what a device of a model may set: imperfections and weights."""
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

    Args:
        model: a built model.
        name: an imperfection of every layer that has it (`"temperature"`) or of one
            layer (`"mrr_bank_1/temperature"`), or an alias in which a layer accepts
            deviations (`"splitter_imbalance"`).
        weights: whether names of trainable variables (`"kernel"`) are found too.

    Raises:
        ValueError: If nothing has that name. The error lists the names that exist.
    """
    layer_name, _, short = str(name).rpartition("/")
    candidates = [q for q in quantities(model) if weights or q.nominal is not None]
    found = []
    for quantity in candidates:
        if layer_name not in ("", quantity.layer.name):
            continue
        aliases = getattr(quantity.layer, "aliases", {})
        meant, convert = aliases.get(short, (short, None))
        if quantity.name == meant:
            found.append(dataclasses.replace(quantity, convert=convert))
    if not found:
        names = [q.name for q in candidates] + [q.path for q in candidates]
        kind = "An imperfection or a weight" if weights else "An imperfection"
        raise ValueError(
            f"{kind} must be one of the model's: "
            f"{', '.join(dict.fromkeys(names)) or 'none (is the model built?)'}. "
            f"Received: {name!r}"
        )
    return found


def architecture(
    model: keras.layers.Layer, names: Iterable[str]
) -> dict[str, list[list[int]]]:
    """Returns the shapes of the model's variables of the given names, in order."""
    shapes: dict[str, list[list[int]]] = {name: [] for name in names}
    for quantity in quantities(model):
        if quantity.name in shapes:
            shapes[quantity.name].append([int(n) for n in quantity.variable.shape])
    return shapes


def select_variables(
    model: keras.layers.Layer, which: str | Callable[[keras.Variable], bool]
) -> list[keras.Variable]:
    """Returns the variables for an ascent or a Hessian.

    Args:
        model: a built model.
        which: `"controls"`, the trainable controls of its physical layers; `"all"`,
            its trainable variables; or a predicate on trainable variables and
            imperfections.

    Raises:
        ValueError: If nothing is selected, or `which` is something else.
    """
    if which == "controls":
        selected = controls_of(model)
        hint = "Pass 'all' for every trainable variable, or a predicate on variables."
    elif which == "all":
        selected, hint = model.trainable_variables, "The model has none."
    elif callable(which):
        candidates = [*model.trainable_variables, *imperfections_of(model)]
        selected = [v for v in candidates if which(v)]
        hint = "The predicate selected nothing."
    else:
        raise ValueError(
            "Variables must be 'controls', 'all' or a predicate on variables. "
            f"Received: {which!r}"
        )
    if not selected:
        raise ValueError(
            f"No variables were found in model '{model.name}' for {which!r}. {hint}"
        )
    return selected
