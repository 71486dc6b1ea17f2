"""Plan the points of a study, with one device for each, and gather their metrics."""

import dataclasses
import itertools
import math

import keras
import numpy as np

from keras_pnn import _keras
from keras_pnn.devices import DeviceSet, SimulatedDevice, Variation, sweep
from keras_pnn.devices.named import Deviations
from keras_pnn.layers.lookup import architecture, common_unit, find, quantities
from keras_pnn.layers.quantity import Quantity
from keras_pnn.robustness.axes import Axis, DeviationAxis, FactorAxis, SpreadAxis
from keras_pnn.robustness.results import Kind, Scan, Sensitivity
from keras_pnn.robustness.specification import Specification

# The mean over this many devices distinguishes layers.
SENSITIVE_DEVICES = 8
# The name of the grid among the scans.
GRID = None


@dataclasses.dataclass(frozen=True)
class Nominal:
    """The design, without deviations."""


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """One device as fabricated."""

    device: int


@dataclasses.dataclass(frozen=True)
class OnScan:
    """One place of a sweep or the `GRID`, given by an index on each axis.

    It is measured on a device or, if `device` is `None`, on the design.
    """

    scan: str | None
    place: tuple[int, ...]
    device: int | None


@dataclasses.dataclass(frozen=True)
class Alone:
    """One kind of imperfection of a device in one layer, without other deviations."""

    # The layer's number, since names differ between models of one architecture.
    layer: int
    kind: Kind
    device: int


@dataclasses.dataclass(frozen=True)
class OnTrained:
    """The device on which the model of this name was trained."""

    model: str


Point = Nominal | OnDevice | OnScan | Alone | OnTrained


class Plan:
    """All points of a study on one model, in a fixed order.

    Device i of a `variation` and a `seed` is the same for every spread and every `n`.

    Attributes:
        points: the points.
        devices: the devices, given or drawn; empty if the study has none.
        scans: name → axes, with the model's units: sweeps, and the grid as `GRID`.
        alone: (layer's number, kind) → deviations of devices without any others.
        trained_on: name of a model → the device that it was trained on.
    """

    def __init__(self, model: keras.Model, specification: Specification):
        self.model, self._seed = model, specification.seed
        self._variation = specification.variation
        self.trained_on = specification.trained_on
        given = specification.devices or ()
        for device in (*given, *self.trained_on.values()):
            device.bind(model)
        self.devices = DeviceSet(given)
        if self._variation is not None:
            self.devices = self._variation.sample(model, specification.n, self._seed)
        # The variables in which any point deviates.
        keys = {k for d in self.trained_on.values() for k in d.deviations}
        self._keys = keys.union(*(d.deviations for d in self.devices[:1]))
        # The deviations that each point of an axis adds to a device.
        self._moved: dict[Axis, list[Deviations]] = {}
        self.scans: dict[str | None, tuple[Axis, ...]] = {
            name: (self._fitted(axis),) for name, axis in specification.sweeps.items()
        }
        if specification.grid:
            self.scans[GRID] = tuple(map(self._fitted, specification.grid.values()))
        self.alone: dict[tuple[int, Kind], list[Deviations]] = {}
        if specification.sensitivity:
            self.alone = self._each_alone()
        self.points = list(self._points(specification.sweep_devices))
        shapes = self._shapes = architecture(model, {name for name, _ in self._keys})
        self._zeros = {
            (name, i): np.zeros(shapes[name][i], "float32")
            for name, i in sorted(self._keys)
        }
        self._check_bounds()

    def device(self, point: Point) -> SimulatedDevice:
        """Returns the device of one point.

        All points set the same variables, with deviations of 0 where there are none, so
        that one graph serves all points.
        """
        return SimulatedDevice({**self._zeros, **self._deviations(point)}, self._shapes)

    def imperfections(self, name: str) -> list[Quantity]:
        """Returns the imperfections that a name addresses, without weights."""
        found = find(self.model, name, weights=True)
        return [quantity for quantity in found if quantity.nominal is not None]

    def spread(self) -> dict[str, float]:
        """Returns imperfection → root mean square deviation over devices and elements.

        If the devices deviate in only some layers that have the imperfection, each of
        these gets its own entry, "layer/imperfection".
        """
        keys = self.devices[0].deviations.keys() if self.devices else ()
        squares: dict[str, list[np.ndarray]] = {}
        for name in sorted({name for name, _ in keys}):
            every = self.imperfections(name)
            moved = [q for q in every if (q.name, q.index) in keys]
            for quantity in moved:
                label = name if len(moved) == len(every) else quantity.path
                key = quantity.name, quantity.index
                squares.setdefault(label, []).extend(
                    np.square(device.deviations[key][quantity.exists], dtype="float64")
                    for device in self.devices
                )
        joined = {name: np.concatenate(parts) for name, parts in squares.items()}
        return {n: math.sqrt(s.mean()) for n, s in joined.items() if s.any()}

    def _points(self, sweep_devices: int):
        yield Nominal()
        yield from map(OnDevice, range(len(self.devices)))
        for name, axes in self.scans.items():
            design = [] if any(axis.random for axis in axes) else [None]
            devices = [*design, *range(sweep_devices)]
            for place in itertools.product(*(range(len(axis)) for axis in axes)):
                yield from (OnScan(name, place, device) for device in devices)
        for (layer, kind), devices in self.alone.items():
            yield from (Alone(layer, kind, i) for i in range(len(devices)))
        yield from map(OnTrained, self.trained_on)

    def _fitted(self, axis: Axis) -> Axis:
        """Returns an axis with its unit, and stores the deviations along it."""
        found = [
            quantity
            for name in axis.imperfections
            for quantity in find(self.model, name, weights=True)
        ]
        self._keys |= {(q.name, q.index) for q in found}
        fitted = dataclasses.replace(axis, unit=common_unit(found))
        if isinstance(axis, DeviationAxis):
            devices = sweep(self.model, axis.name, axis.values)
            self._moved[fitted] = [device.deviations for device in devices]
        elif isinstance(axis, SpreadAxis):
            # Raises the error if the spread cannot be drawn.
            self._drawn(axis.variation(axis.values.max()), 0)
        return fitted

    def _deviations(self, point: Point) -> Deviations:
        match point:
            case Nominal():
                return {}
            case OnDevice(device):
                return self.devices[device].deviations
            case Alone(layer, kind, device):
                return self.alone[layer, kind][device]
            case OnTrained(model):
                return self.trained_on[model].deviations
        found = {}
        if point.device is not None:
            found = self.devices[point.device].deviations
        steps = zip(self.scans[point.scan], point.place, strict=True)
        # Spreads replace deviations, so they must precede additions.
        order = (FactorAxis, SpreadAxis, DeviationAxis)
        for axis, i in sorted(steps, key=lambda step: order.index(type(step[0]))):
            if isinstance(axis, FactorAxis):
                found = self._multiplied(float(axis.values[i]), point.device)
            elif isinstance(axis, SpreadAxis):
                variation = axis.variation(axis.values[i])
                found = {**found, **self._drawn(variation, point.device)}
            else:
                added = self._moved[axis][i]
                sums = {k: found[k] + v if k in found else v for k, v in added.items()}
                found = {**found, **sums}
        return found

    def _multiplied(self, factor: float, device: int) -> Deviations:
        """Returns a device's deviations times a factor; draws have scaled spreads."""
        if self._variation is not None:
            return self._drawn(self._variation.scaled(factor), device)
        # A factor does not apply to stuck controls: neither their mask nor their value.
        held = {(q.name, q.index) for q in quantities(self.model) if q.holds}
        return {
            key: value if key in held else (factor * value).astype(value.dtype)
            for key, value in self.devices[device].deviations.items()
        }

    def _drawn(self, variation: Variation, device: int) -> Deviations:
        return variation.drawn(self.model, (self._seed, device))

    def _each_alone(self) -> dict[tuple[int, Kind], list[Deviations]]:
        devices = [d.deviations for d in self.devices[:SENSITIVE_DEVICES]]
        found = {}
        for name in self.spread():
            for key, layer in self._places(name):
                alone = [{key: device[key]} for device in devices if key in device]
                if alone:
                    found[layer, Kind(name.rpartition("/")[2])] = alone
        for name, (axis, *_) in self.scans.items():
            if name is GRID or axis.random:
                continue
            for i in dict.fromkeys((0, len(axis) - 1)):
                if np.any(axis.values[i]):
                    kind = Kind(name.rpartition("/")[2], axis.ticks[i])
                    for key, layer in self._places(name):
                        found[layer, kind] = [{key: self._moved[axis][i][key]}]
        return found

    def _places(self, name: str) -> list[tuple[tuple[str, int], int]]:
        """Returns (key, layer's number) of each variable that a name addresses."""
        numbers = {id(la): i for i, la in enumerate(_keras.flat_layers(self.model))}
        found = find(self.model, name, weights=True)
        return [((q.name, q.index), numbers[id(q.layer)]) for q in found]

    def _check_bounds(self) -> None:
        """Raises ValueError if a point moves an imperfection beyond its bounds.

        Points are drawn for this check only if an imperfection has a bound.
        """
        pairs = self.device(Nominal()).bind(self.model)
        if all(np.isinf(quantity.room).all() for quantity, _ in pairs):
            return
        for point in self.points:
            try:
                self.device(point).bind(self.model)
            except ValueError as error:
                raise ValueError(f"At {point}: {error}") from error


def gathered(plan: Plan, found: dict) -> dict:
    """Returns the fields of `ModelRobustness` that follow from the points' metrics."""
    scans = {name: _scan(plan, found, name) for name in plan.scans}
    fields = {"nominal": found[Nominal()], "grid": scans.pop(GRID, None)}
    fields["sweeps"] = scans
    if count := len(plan.devices):
        fields["devices"] = _arrays(found, map(OnDevice, range(count)), (count,))
        labels = (d.label or f"device {i}" for i, d in enumerate(plan.devices))
        fields["labels"] = tuple(labels)
    if plan.alone:
        fields["sensitivity"] = _sensitivity(plan, found)
    return fields


def _scan(plan: Plan, found: dict, name: str | None) -> Scan:
    axes = plan.scans[name]
    shape = tuple(len(axis) for axis in axes)
    points = [p for p in plan.points if isinstance(p, OnScan) and p.scan == name]
    design = [p for p in points if p.device is None]
    devices = [p for p in points if p.device is not None]
    # Points of one place are adjacent.
    arrays = _arrays(found, devices, (*shape, -1)) if devices else None
    return Scan(
        axes,
        _arrays(found, design, shape) if design else None,
        arrays and {n: np.moveaxis(values, -1, 0) for n, values in arrays.items()},
    )


def _sensitivity(plan: Plan, found: dict) -> Sensitivity:
    layers = sorted({layer for layer, _ in plan.alone})
    kinds = list(dict.fromkeys(kind for _, kind in plan.alone))
    names = layer_names(plan.model)
    metrics = {n: np.full((len(layers), len(kinds)), np.nan) for n in found[Nominal()]}
    for (layer, kind), devices in plan.alone.items():
        points = [Alone(layer, kind, i) for i in range(len(devices))]
        place = layers.index(layer), kinds.index(kind)
        for name, values in metrics.items():
            values[place] = np.mean([found[point][name] for point in points])
    return Sensitivity(
        tuple(names[layer] for layer in layers),
        tuple(kinds),
        metrics,
        max(map(len, plan.alone.values())),
    )


def _arrays(found: dict, points, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns metric → its values at the points, in a given shape."""
    points = list(points)
    return {
        name: np.array([found[point][name] for point in points]).reshape(shape)
        for name in found[Nominal()]
    }


def layer_names(model) -> list[str]:
    """Returns the name of each layer, with a number if several have the same name."""
    names = [layer.name for layer in _keras.flat_layers(model)]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
