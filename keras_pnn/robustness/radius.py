"""Decide how far a report's search for the worst device may go."""

import math

import numpy as np

from keras_pnn.layers.lookup import find
from keras_pnn.layers.quantity import Quantity
from keras_pnn.robustness.axes import DeviationAxis
from keras_pnn.robustness.points import Plan


def search_radius(plan: Plan, worst_case: bool | dict) -> dict[str, float]:
    """Returns imperfection → radius of the search; empty for no search."""
    if isinstance(worst_case, dict):
        return worst_case
    return default_radius(plan) if worst_case else {}


def default_radius(plan: Plan) -> dict[str, float]:
    """Returns imperfection → how far the search goes in it.

    The devices' spread, and for variables that they do not deviate in the first step
    of an axis away from the design: a sweep often ends where every model fails. Of
    several axes the largest counts. Names are of one layer ("layer/imperfection")
    where not all layers go as far.
    """
    radius = plan.fabrication.spread()
    taken = {id(q.variable) for name in radius for q in _imperfections(plan, name)}
    # (layer, imperfection) → reach; the layer "" stands for all.
    reaches: dict[tuple[str, str], float] = {}
    for axis in (axis for axes in plan.scans.values() for axis in axes):
        # A weight is no imperfection.
        found = isinstance(axis, DeviationAxis) and _imperfections(plan, axis.name)
        if found:
            key = axis.name.rpartition("/")[0], found[0].name
            reaches[key] = max(reaches.get(key, 0.0), _reach(axis, found))
    for name in dict.fromkeys(name for _, name in reaches):
        every = _imperfections(plan, name)
        free = [q for q in every if id(q.variable) not in taken]
        common = reaches.get(("", name), 0.0)
        own = {q.path: reaches.get((q.layer.name, name), 0.0) for q in free}
        layers = {path: max(common, reach) for path, reach in own.items()}
        if len(free) == len(every) and set(layers.values()) == {common}:
            layers = {name: common}
        radius |= {path: reach for path, reach in layers.items() if reach}
    return radius


def _imperfections(plan: Plan, name: str) -> list[Quantity]:
    found = find(plan.model, name, weights=True)
    return [quantity for quantity in found if quantity.nominal is not None]


def _reach(axis: DeviationAxis, found: list[Quantity]) -> float:
    """Returns the least root mean square over elements of an axis' points, but 0.

    It is in the unit of the variables, which an alias's values are converted to.
    """
    sizes = [
        _root_mean_square(np.concatenate([_elements(q, point) for q in found]))
        for point in axis.values
    ]
    return min((size for size in sizes if size), default=0.0)


def _elements(quantity: Quantity, point: np.ndarray) -> np.ndarray:
    """Returns what one point of an axis moves the elements of a variable by."""
    amounts = np.broadcast_to(point, quantity.exists.shape)
    if quantity.convert is not None:
        amounts = np.asarray(quantity.convert(amounts), "float64")
    return amounts[quantity.exists]


def _root_mean_square(values: np.ndarray) -> float:
    largest = float(np.abs(values).max(initial=0.0))
    # In units of the largest: where all are alike, the result is that very number.
    return largest and largest * math.sqrt(np.mean(np.square(values / largest)))
