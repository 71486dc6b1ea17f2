"""What a robustness study evaluates: one simulated device for each of its points."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_pnn import _keras
from keras_pnn.devices.simulated import DeviceSet, SimulatedDevice, sweep
from keras_pnn.devices.variation import Variation
from keras_pnn.layers.lookup import architecture, find
from keras_pnn.layers.quantity import Quantity
from keras_pnn.robustness.results import Axis

# The index of the design, where devices count from 0.
DESIGN = -1

Deviations = dict[tuple[str, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Point:
    """One thing to evaluate, named so that its result can be found again.

    Args:
        section: `"nominal"`, `"device"`, `"sweep"`, `"grid"`, `"sensitivity"` or
            `"transfer"`.
        name: of the sweep or grid; the layer's number and a kind for a sensitivity;
            the other model's name for a transfer.
        index: the place on the axes of a scan.
        device: the device's index, `DESIGN` for the design.
    """

    section: str
    name: str = ""
    index: tuple[int, ...] = ()
    device: int = DESIGN


class Fabrication:
    """The devices of a study, given or drawn, one at a time.

    Args:
        model: a built model.
        devices: simulated devices, or `None`.
        variation: a `Variation` to draw from, or `None`. Not both.
        n: how many to draw.
        seed: of the draws: device i is the same for every spread and every `n`.

    Raises:
        ValueError: both are given, there is no device, a device is not simulated or
            comes from another architecture, or a name matches nothing.
    """

    def __init__(
        self,
        model: keras.layers.Layer,
        devices: Sequence[SimulatedDevice] | None,
        variation: Variation | None,
        n: int,
        seed: int,
    ):
        if devices is not None and variation is not None:
            raise ValueError("Give `devices` or `variation`, not both. Received: both")
        if isinstance(n, bool) or int(n) != n or n < 1:
            raise ValueError(f"`n` must be a whole number >= 1. Received: {n!r}")
        self.model, self.seed = model, int(seed)
        self.devices, self.variation = devices, variation
        if devices is not None:
            if not len(devices):
                raise ValueError(
                    "`devices` must hold at least one device. Received: none"
                )
            for device in devices:
                if not isinstance(device, SimulatedDevice):
                    raise ValueError(
                        "`devices` must be simulated devices, whose imperfections "
                        f"are known. Received: {device!r}"
                    )
            self.devices = DeviceSet(devices)
            for device in self.devices:
                device.bind(model)
        elif variation is not None:
            if not isinstance(variation, Variation):
                raise ValueError(
                    f"`variation` must be a `Variation`. Received: {variation!r}"
                )
            self.devices = variation.sample(model, int(n), self.seed)

    def __len__(self):
        return 0 if self.devices is None else len(self.devices)

    @property
    def labels(self) -> tuple[str, ...]:
        """The devices' names."""
        return tuple(self.devices[i].label or f"device {i}" for i in range(len(self)))

    def deviations(self, device: int, factor: float = 1.0) -> Deviations:
        """Returns what a device deviates by, times a factor; nothing for the design."""
        if device == DESIGN:
            return {}
        if factor == 1.0:
            return dict(self.devices[device].deviations)
        if self.variation is None:
            mine = self.devices[device].deviations
            return {k: (factor * v).astype(v.dtype) for k, v in mine.items()}
        return self.draw(self.variation.scaled(factor), device)

    def draw(self, variation: Variation, device: int) -> Deviations:
        """Returns the deviations of one device of another variation."""
        drawn = variation.deviations(self.model, (self.seed, device))
        arrays = {(t.name, t.index): d.numpy() for t, d in drawn}
        for target, _ in drawn:
            target.check(arrays[target.name, target.index])
        return arrays

    def spread(self) -> dict[str, float]:
        """Returns imperfection → root mean square deviation over devices and elements.

        One that the devices have in some layers only is named for each of these,
        "layer/imperfection".
        """
        squares: dict[str, list[np.ndarray]] = {}
        everything = self._imperfections()
        keys = self.devices[0].deviations.keys() if self.devices else ()
        partial = {t.name for t in everything if (t.name, t.index) not in keys}
        for target in everything:
            key = target.name, target.index
            if key not in keys:
                continue
            name = f"{target.layer.name}/" if target.name in partial else ""
            exists = True if target.mask is None else target.mask
            for device in self.devices:
                array = device.deviations[key]
                squares.setdefault(name + target.name, []).append(
                    np.square(array[_full(exists, array)], dtype="float64")
                )
        joined = {name: np.concatenate(parts) for name, parts in squares.items()}
        return {n: math.sqrt(s.mean()) for n, s in joined.items() if s.any()}

    def _imperfections(self) -> list[Quantity]:
        names = {name for name, _ in self.devices[0].deviations} if self.devices else ()
        found = [t for name in sorted(names) for t in find(self.model, name, True)]
        return [t for t in found if t.nominal is not None]


class Scanned:
    """One axis of a scan: how each of its points changes a device.

    Args:
        fabrication: the devices.
        argument: the argument that it came in, for messages.
        name: `"variation"`, `"std:<imperfection>+…"`, or an imperfection.
        values: its points.

    Raises:
        ValueError: nothing has that name; a value is missing, not finite, negative
            where it is a spread, or of another shape; a spread without devices.
    """

    def __init__(self, fabrication: Fabrication, argument: str, name: str, values):
        self.fabrication = fabrication
        where = f"`{argument}[{name!r}]`"
        try:
            points = np.atleast_1d(np.asarray(values, "float64"))
        except (TypeError, ValueError):
            raise ValueError(
                f"{where} must be numbers, or arrays of one shape. Received: {values!r}"
            ) from None
        if not len(points) or not np.isfinite(points).all():
            raise ValueError(
                f"{where} must hold at least one value, all finite. Received: {values}"
            )
        random = name == "variation" or name.startswith("std:")
        if random and (points.ndim != 1 or points.min() < 0):
            raise ValueError(
                f"{where} must hold spreads: numbers that are 0 or more. "
                f"Received: {values}"
            )
        model = fabrication.model
        if name == "variation":
            if not len(fabrication):
                raise ValueError(
                    f"{where} is a factor on the devices' deviations: give `devices` "
                    "or `variation`. Received: neither"
                )
            self.axis, self._names = Axis(name, "", points), []
        elif random:
            self._names = name[len("std:") :].split("+")
            if fabrication.variation is None:
                raise ValueError(
                    f"{where} draws devices: give the `variation` that their other "
                    "imperfections have. Received: none"
                )
            found = [t for n in self._names for t in find(model, n, weights=True)]
            self.axis = Axis(name, _unit(found), points)
            # The largest spread must exist, too.
            fabrication.draw(self._variation(points.max()), 0)
        else:
            found = find(model, name, weights=True)
            self._moved = sweep(model, name, points)
            self.axis = Axis(name, _unit(found), points)

    def keys(self) -> set[tuple[str, int]]:
        """Returns what its points deviate in."""
        if self.axis.name == "variation":
            return set()
        if self.axis.random:
            return set(self.fabrication.draw(self._variation(1e-3), 0))
        return set(self._moved[0].deviations)

    def moved(self, point: int) -> Deviations:
        """Returns what one point of an axis that is not random adds to a device."""
        return self._moved[point].deviations

    def apply(self, point: int, device: int, deviations: Deviations) -> Deviations:
        """Returns the deviations of a device at one point.

        Args:
            point: index of the point.
            device: index of the device, or `DESIGN`.
            deviations: those so far.
        """
        value = float(self.axis.values[point]) if self.axis.random else None
        if self.axis.name == "variation":
            return self.fabrication.deviations(device, value)
        if self.axis.random:
            drawn = self.fabrication.draw(self._variation(value), device)
            return {**deviations, **drawn}
        merged = dict(deviations)
        for key, array in self.moved(point).items():
            merged[key] = merged[key] + array if key in merged else array
        return merged

    def _variation(self, std: float) -> Variation:
        return Variation(dict.fromkeys(self._names, float(std)))


class Plan:
    """All points of a study, in an order that never changes.

    Args:
        fabrication: the devices.
        sweeps: name → `Scanned`.
        grid: two `Scanned`, or none.
        sweep_devices: how many of the devices the scans take.
        sensitive_devices: how many of the devices the sensitivity takes; 0 for no
            sensitivity.
        trained_on: name → the device that the model of that name was trained on.

    Attributes:
        points: the points.
    """

    def __init__(
        self,
        fabrication: Fabrication,
        sweeps: dict[str, Scanned],
        grid: tuple[Scanned, ...],
        sweep_devices: int,
        sensitive_devices: int,
        trained_on: dict[str, SimulatedDevice],
    ):
        self.fabrication, self.sweeps, self.grid = fabrication, sweeps, grid
        self.trained_on = trained_on
        self.alone: dict[str, list[Deviations]] = {}
        if sensitive_devices:
            self.alone = self._alone(sensitive_devices)
        self.points = [Point("nominal")]
        self.points += [Point("device", device=d) for d in range(len(fabrication))]
        scans = [("sweep", name, (axis,)) for name, axis in sweeps.items()]
        if grid:
            scans.append(("grid", "", grid))
        for section, name, axes in scans:
            devices = list(range(sweep_devices))
            if not any(a.axis.random for a in axes):
                devices = [DESIGN, *devices]
            places = itertools.product(*(range(len(a.axis)) for a in axes))
            self.points += [
                Point(section, name, place, d) for place in places for d in devices
            ]
        self.points += [
            Point("sensitivity", name, (), d)
            for name, chips in self.alone.items()
            for d in range(len(chips))
        ]
        self.points += [Point("transfer", name) for name in trained_on]
        self._keys = self._all_keys()
        model = fabrication.model
        self._shapes = architecture(model, {name for name, _ in self._keys})
        self._check_bounds()

    def _check_bounds(self) -> None:
        """Raises ValueError where a point takes something to what does not exist.

        Points are drawn for it only where something has a bound.
        """
        model = self.fabrication.model
        pairs = self.device(self.points[0]).bind(model)
        if any(target.lower_bound is not None for target, _ in pairs):
            for point in self.points:
                try:
                    self.device(point).bind(model)
                except ValueError as error:
                    where = " ".join(map(str, dataclasses.astuple(point)))
                    raise ValueError(f"Point ({where.strip()}): {error}") from error

    def device(self, point: Point) -> SimulatedDevice:
        """Returns the device of one point.

        All deviate in the same variables, by 0 where nothing is said: the variables
        then need no graph of their own for each kind of point.
        """
        mine = self._deviations(point)
        zeros = {k: np.zeros(shape, "float32") for k, shape in self._keys.items()}
        label = " ".join(str(part) for part in dataclasses.astuple(point))
        return SimulatedDevice({**zeros, **mine}, self._shapes, label)

    def axes(self, point: Point) -> tuple[Scanned, ...]:
        """Returns the axes that a point's index is on."""
        if point.section == "sweep":
            return (self.sweeps[point.name],)
        return self.grid if point.section == "grid" else ()

    def ends(self) -> list[Point]:
        """Returns the points at the ends of all axes, of the design."""
        return [
            p
            for p in self.points
            if p.device == DESIGN
            and p.index
            and all(
                i in (0, len(a.axis) - 1)
                for a, i in zip(self.axes(p), p.index, strict=True)
            )
        ]

    def _deviations(self, point: Point) -> Deviations:
        if point.section == "sensitivity":
            return self.alone[point.name][point.device]
        if point.section == "transfer":
            return dict(self.trained_on[point.name].deviations)
        found = self.fabrication.deviations(point.device)
        # Spreads take the place of deviations, so that they come before additions.
        steps = sorted(
            zip(self.axes(point), point.index, strict=True),
            key=lambda pair: _rank(pair[0]),
        )
        for axis, place in steps:
            found = axis.apply(place, point.device, found)
        return found

    def _alone(self, devices: int) -> dict[str, list[Deviations]]:
        """(layer's number, kind) as one name → devices that deviate in that alone.

        A number, since names differ between two models of one architecture.
        """
        model, found = self.fabrication.model, {}
        number = {id(la): i for i, la in enumerate(_keras.flat_layers(model))}
        names = {n: None for n in self.fabrication.spread()}
        for name in names:
            for target in find(model, name, weights=True):
                key = target.name, target.index
                chips = [
                    {key: self.fabrication.devices[d].deviations[key]}
                    for d in range(min(devices, len(self.fabrication)))
                    if key in self.fabrication.devices[d].deviations
                ]
                if chips:
                    found[f"{number[id(target.layer)]}|{_short(name)}"] = chips
        for name, axis in self.sweeps.items():
            if axis.axis.random:
                continue
            ends = dict.fromkeys((0, len(axis.axis) - 1))
            for point in ends:
                if not np.any(axis.axis.values[point]):
                    continue
                moved = axis.moved(point)
                kind = f"{_short(name)} = {axis.axis.ticks[point]}"
                for target in find(model, name, weights=True):
                    key = target.name, target.index
                    found[f"{number[id(target.layer)]}|{kind}"] = [{key: moved[key]}]
        return found

    def _all_keys(self) -> dict[tuple[str, int], tuple[int, ...]]:
        keys = set()
        for device in (
            *(self.fabrication.devices or ())[:1],
            *self.trained_on.values(),
        ):
            keys |= set(device.deviations)
        for axis in (*self.sweeps.values(), *self.grid):
            keys |= axis.keys()
        model = self.fabrication.model
        shapes = architecture(model, {name for name, _ in keys})
        return {(n, i): tuple(shapes[n][i]) for n, i in sorted(keys)}


def _short(name: str) -> str:
    """An imperfection's name without its layer's."""
    return name.rpartition("/")[2]


def _rank(axis: Scanned) -> int:
    if axis.axis.name == "variation":
        return 0
    return 1 if axis.axis.random else 2


def _unit(found: list[Quantity]) -> str:
    """The unit that targets have in common, `""` where they have none."""
    units = set()
    for target in found:
        # Another quantity, such as a power imbalance, is not in the variable's unit.
        if target.convert is not None or target.nominal is None:
            return ""
        units.add(target.layer.quantity(target.name).unit)
    return units.pop() if len(units) == 1 else ""


def _full(exists, array):
    return np.broadcast_to(exists, array.shape)
