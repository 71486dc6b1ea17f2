"""Lay out what a robustness study measures: one simulated device for each point."""

import dataclasses
import itertools

import keras
import numpy as np

from keras_pnn import _keras
from keras_pnn.devices import SimulatedDevice, sweep
from keras_pnn.layers.lookup import architecture, find
from keras_pnn.layers.quantity import Quantity
from keras_pnn.robustness.axes import Axis, DeviationAxis, FactorAxis, SpreadAxis
from keras_pnn.robustness.fabrication import Deviations, Fabrication
from keras_pnn.robustness.results import Kind
from keras_pnn.robustness.specification import Specification

# Of so many devices the mean tells layers apart.
SENSITIVE_DEVICES = 8
# The name of the grid among the scans.
GRID = None


@dataclasses.dataclass(frozen=True)
class Nominal:
    """The design, with nothing off."""


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """One device as fabricated."""

    device: int


@dataclasses.dataclass(frozen=True)
class OnScan:
    """One place of a sweep or of the grid.

    Args:
        scan: the sweep's name, or `GRID`.
        place: the index on each axis.
        device: the index of the device, `None` for the design.
    """

    scan: str | None
    place: tuple[int, ...]
    device: int | None


@dataclasses.dataclass(frozen=True)
class Alone:
    """One kind of imperfection in one layer, with nothing else off.

    Args:
        layer: the layer's number: names differ between models of one architecture.
        kind: what deviates.
        device: which of the devices that have it.
    """

    layer: int
    kind: Kind
    device: int


@dataclasses.dataclass(frozen=True)
class OnTrained:
    """The device that the model of some name was trained on."""

    model: str


Point = Nominal | OnDevice | OnScan | Alone | OnTrained


class Plan:
    """All points of a study on one model, in an order that never changes.

    Args:
        model: a built model.
        specification: of the study.

    Attributes:
        points: the points.
        scans: name → axes, with the model's units: sweeps, and the grid as `GRID`.
        fabrication: the devices.
        trained_on: name of a model → the device that it was trained on.

    Raises:
        ValueError: If a name matches nothing in the model, a value has another shape,
            a device comes from another architecture, or a point takes an imperfection
            to what does not exist.
    """

    def __init__(self, model: keras.Model, specification: Specification):
        self.model = model
        self.fabrication = Fabrication(model, specification)
        self.trained_on = specification.trained_on
        for device in self.trained_on.values():
            device.bind(model)
        # What each point of an axis adds to a device.
        self._moved: dict[Axis, list[Deviations]] = {}
        self.scans: dict[str | None, tuple[Axis, ...]] = {
            name: (self._fitted("sweeps", axis),)
            for name, axis in specification.sweeps.items()
        }
        if specification.grid:
            axes = specification.grid.values()
            self.scans[GRID] = tuple(self._fitted("grid", axis) for axis in axes)
        self._alone: dict[tuple[int, Kind], list[Deviations]] = {}
        if specification.sensitivity:
            self._alone = self._each_alone()
        self.points = list(self._points(specification.sweep_devices))
        self._keys = self._all_keys()
        self._shapes = architecture(model, {name for name, _ in self._keys})
        self._check_bounds()

    def device(self, point: Point) -> SimulatedDevice:
        """Returns the device of one point.

        All points deviate in the same variables, by 0 where nothing is off: one graph
        then serves all of them.
        """
        zeros = {k: np.zeros(shape, "float32") for k, shape in self._keys.items()}
        return SimulatedDevice({**zeros, **self._deviations(point)}, self._shapes)

    def kinds(self) -> dict[tuple[int, Kind], int]:
        """Returns (layer's number, kind) → devices that have it, for sensitivities."""
        return {key: len(devices) for key, devices in self._alone.items()}

    def ends(self) -> list[OnScan]:
        """Returns the ends of all sweeps and the grid's corners, on the design."""
        return [
            point
            for point in self.points
            if isinstance(point, OnScan)
            and point.device is None
            and all(
                i in (0, len(axis) - 1)
                for axis, i in zip(self.scans[point.scan], point.place, strict=True)
            )
        ]

    def _points(self, sweep_devices: int):
        yield Nominal()
        yield from map(OnDevice, range(len(self.fabrication.devices)))
        for name, axes in self.scans.items():
            design = [] if any(axis.random for axis in axes) else [None]
            devices = [*design, *range(sweep_devices)]
            for place in itertools.product(*(range(len(axis)) for axis in axes)):
                yield from (OnScan(name, place, device) for device in devices)
        for (layer, kind), devices in self._alone.items():
            yield from (Alone(layer, kind, i) for i in range(len(devices)))
        yield from map(OnTrained, self.trained_on)

    def _fitted(self, argument: str, axis: Axis) -> Axis:
        """Returns an axis with its unit in the model, and notes what it moves.

        Raises:
            ValueError: If nothing has its name, a value has another shape, or its
                largest spread takes an imperfection to what does not exist.
        """
        names = []
        if isinstance(axis, DeviationAxis):
            names = [axis.name]
        elif isinstance(axis, SpreadAxis):
            names = axis.imperfections
        found = [q for name in names for q in find(self.model, name, weights=True)]
        fitted = dataclasses.replace(axis, unit=_unit(found))
        if isinstance(axis, DeviationAxis):
            devices = sweep(self.model, axis.name, axis.values)
            self._moved[fitted] = [device.deviations for device in devices]
        elif isinstance(axis, SpreadAxis):
            self.fabrication.draw(axis.variation(axis.values.max()), 0)
        return fitted

    def _deviations(self, point: Point) -> Deviations:
        match point:
            case Nominal():
                return {}
            case OnDevice(device):
                return self.fabrication.deviations(device)
            case Alone(layer, kind, device):
                return self._alone[layer, kind][device]
            case OnTrained(model):
                return self.trained_on[model].deviations
        found = self.fabrication.deviations(point.device)
        steps = zip(self.scans[point.scan], point.place, strict=True)
        # Spreads replace deviations, so that they come before additions.
        order = (FactorAxis, SpreadAxis, DeviationAxis)
        for axis, i in sorted(steps, key=lambda step: order.index(type(step[0]))):
            found = self._stepped(axis, i, point.device, found)
        return found

    def _stepped(self, axis: Axis, i: int, device, found: Deviations) -> Deviations:
        """Returns the deviations of a device at one point of an axis."""
        if isinstance(axis, FactorAxis):
            return self.fabrication.deviations(device, float(axis.values[i]))
        if isinstance(axis, SpreadAxis):
            variation = axis.variation(axis.values[i])
            return {**found, **self.fabrication.draw(variation, device)}
        added = self._moved[axis][i]
        sums = {k: found[k] + v if k in found else v for k, v in added.items()}
        return {**found, **sums}

    def _each_alone(self) -> dict[tuple[int, Kind], list[Deviations]]:
        """Returns (layer's number, kind) → devices that deviate in that alone."""
        devices = [d.deviations for d in self.fabrication.devices[:SENSITIVE_DEVICES]]
        found = {}
        for name in self.fabrication.spread():
            for key, place in self._places(name):
                alone = [{key: device[key]} for device in devices if key in device]
                if alone:
                    found[place, Kind(_short(name))] = alone
        for name, (axis, *_) in self.scans.items():
            if name is GRID or axis.random:
                continue
            for i in dict.fromkeys((0, len(axis) - 1)):
                if np.any(axis.values[i]):
                    kind = Kind(_short(name), axis.ticks[i])
                    for key, place in self._places(name):
                        found[place, kind] = [{key: self._moved[axis][i][key]}]
        return found

    def _places(self, name: str) -> list[tuple[tuple[str, int], int]]:
        """Returns (key, layer's number) of each variable that a name addresses."""
        numbers = {id(la): i for i, la in enumerate(_keras.flat_layers(self.model))}
        found = find(self.model, name, weights=True)
        return [((q.name, q.index), numbers[id(q.layer)]) for q in found]

    def _all_keys(self) -> dict[tuple[str, int], tuple[int, ...]]:
        """Returns the variables that any point deviates in, with their shapes."""
        keys = set()
        for device in (*self.fabrication.devices[:1], *self.trained_on.values()):
            keys |= device.deviations.keys()
        for axis in itertools.chain(*self.scans.values()):
            if isinstance(axis, DeviationAxis):
                keys |= self._moved[axis][0].keys()
            elif isinstance(axis, SpreadAxis):
                keys |= self.fabrication.draw(axis.variation(1e-3), 0).keys()
        shapes = architecture(self.model, {name for name, _ in keys})
        return {(n, i): tuple(shapes[n][i]) for n, i in sorted(keys)}

    def _check_bounds(self) -> None:
        """Raises ValueError if a point takes something to what does not exist.

        Points are drawn for it only where something has a bound.
        """
        pairs = self.device(Nominal()).bind(self.model)
        if all(quantity.lower_bound is None for quantity, _ in pairs):
            return
        for point in self.points:
            try:
                self.device(point).bind(self.model)
            except ValueError as error:
                raise ValueError(f"At {point}: {error}") from error


def _short(name: str) -> str:
    """Returns an imperfection's name without its layer's."""
    return name.rpartition("/")[2]


def _unit(found: list[Quantity]) -> str:
    """Returns the unit that quantities have in common, `""` where they have none."""
    # Another quantity, such as a power imbalance, is not in the variable's unit.
    if any(q.convert is not None or q.nominal is None for q in found):
        return ""
    units = {q.unit for q in found}
    return units.pop() if len(units) == 1 else ""
