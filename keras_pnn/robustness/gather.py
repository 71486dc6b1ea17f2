"""Gather the metrics of single points into devices, scans and sensitivities."""

import numpy as np

from keras_pnn import _keras
from keras_pnn.robustness.points import GRID, Alone, Nominal, OnDevice, OnScan, Plan
from keras_pnn.robustness.results import Scan, Sensitivity


def gathered(plan: Plan, found: dict) -> dict:
    """Returns the fields of `ModelRobustness` that the points give.

    Args:
        plan: the points.
        found: point → its metrics, for all points of the plan.
    """
    scans = {name: _scan(plan, found, name) for name in plan.scans}
    fields = {"nominal": found[Nominal()], "grid": scans.pop(GRID, None)}
    fields["sweeps"] = scans
    if count := len(plan.fabrication.devices):
        fields["devices"] = _arrays(found, map(OnDevice, range(count)), (count,))
        fields["labels"] = plan.fabrication.labels
    if plan.kinds():
        fields["sensitivity"] = _sensitivity(plan, found)
    return fields


def _scan(plan: Plan, found: dict, name: str | None) -> Scan:
    axes = plan.scans[name]
    points = [p for p in plan.points if isinstance(p, OnScan) and p.scan == name]
    design = [p for p in points if p.device is None]
    devices = [p for p in points if p.device is not None]
    shape = tuple(len(axis) for axis in axes)
    on_devices = None
    if devices:
        # Points of one place follow each other.
        arrays = _arrays(found, devices, (*shape, -1))
        on_devices = {n: np.moveaxis(values, -1, 0) for n, values in arrays.items()}
    return Scan(axes, _arrays(found, design, shape) if design else None, on_devices)


def _sensitivity(plan: Plan, found: dict) -> Sensitivity:
    counts = plan.kinds()
    layers = sorted({layer for layer, _ in counts})
    kinds = list(dict.fromkeys(kind for _, kind in counts))
    names = layer_names(plan.model)
    metrics = {n: np.full((len(layers), len(kinds)), np.nan) for n in found[Nominal()]}
    for (layer, kind), count in counts.items():
        points = [Alone(layer, kind, i) for i in range(count)]
        place = layers.index(layer), kinds.index(kind)
        for name, values in metrics.items():
            values[place] = np.mean([found[point][name] for point in points])
    return Sensitivity(
        tuple(names[layer] for layer in layers),
        tuple(kinds),
        metrics,
        max(counts.values()),
    )


def _arrays(found: dict, points, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns metric → the values at the points, in a shape."""
    points = list(points)
    return {
        name: np.array([found[point][name] for point in points]).reshape(shape)
        for name in found[Nominal()]
    }


def layer_names(model) -> list[str]:
    """Returns the name of each layer; with a number where several have the same."""
    names = [layer.name for layer in _keras.flat_layers(model)]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
