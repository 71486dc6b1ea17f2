"""How far a report lets the search for the worst device go."""

import math

import numpy as np

from keras_pnn.layers.lookup import find
from keras_pnn.layers.quantity import Quantity
from keras_pnn.robustness.points import Plan
from keras_pnn.robustness.results import Axis
from keras_pnn.robustness.worst_case import balls_of, existing


def search_radius(plan: Plan, worst_case) -> dict[str, float]:
    """imperfection → radius of the search; empty for none."""
    if worst_case is False:
        return {}
    if worst_case is True:
        radius = default_radius(plan)
    elif isinstance(worst_case, dict):
        radius = worst_case
    else:
        raise ValueError(
            "`worst_case` must be True, False or a dictionary imperfection → radius. "
            f"Received: {worst_case!r}"
        )
    balls_of(plan.fabrication.model, radius)
    return radius


def default_radius(plan: Plan) -> dict[str, float]:
    """Returns imperfection → how far devices, sweeps and grid go in it.

    The devices' spread, and for variables that they do not deviate in the largest
    reach of an axis. Names are of one layer ("layer/imperfection") where not all
    layers go as far.
    """
    model = plan.fabrication.model
    radius = plan.fabrication.spread()
    taken = {id(t.variable) for name in radius for t in find(model, name, weights=True)}
    # (layer, imperfection) → reach; the layer "" stands for all.
    reaches: dict[tuple[str, str], float] = {}
    for scanned in (*plan.sweeps.values(), *plan.grid):
        axis = scanned.axis
        if axis.random:
            continue
        found = find(model, axis.name, weights=True)
        found = [t for t in found if t.nominal is not None]
        # A weight is no imperfection.
        if found:
            key = axis.name.rpartition("/")[0], found[0].name
            reaches[key] = max(reaches.get(key, 0.0), reach(axis, found))
    for name in dict.fromkeys(name for _, name in reaches):
        targets = [t for t in find(model, name, weights=True) if t.nominal is not None]
        free = [t for t in targets if id(t.variable) not in taken]
        common = reaches.get(("", name), 0.0)
        layers = {
            t.layer.name: max(common, reaches.get((t.layer.name, name), 0.0))
            for t in free
        }
        if len(free) == len(targets) and set(layers.values()) == {common}:
            layers = {"": common}
        radius |= {f"{la}/{name}" if la else name: r for la, r in layers.items() if r}
    return radius


def reach(axis: Axis, found: list[Quantity]) -> float:
    """Returns the largest root mean square over elements of an axis' points.

    Args:
        axis: an axis that is not random.
        found: what it moves. The result is in the unit of these variables.
    """
    return max(
        _root_mean_square(np.concatenate([_elements(t, point) for t in found]))
        for point in axis.values
    )


def _elements(target: Quantity, point: np.ndarray) -> np.ndarray:
    """What one point of an axis moves the elements of a variable by."""
    amounts = np.broadcast_to(point, tuple(target.variable.shape))
    if target.convert is not None:
        amounts = np.asarray(target.convert(amounts), "float64")
    return amounts[existing(target)]


def _root_mean_square(values: np.ndarray) -> float:
    largest = float(np.abs(values).max(initial=0.0))
    # In units of the largest: where all are alike, the result is that very number.
    return largest and largest * math.sqrt(np.mean(np.square(values / largest)))
