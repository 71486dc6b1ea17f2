"""Describe simulated devices by their deviations from the design."""

import collections
import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _files
from keras_pnn._display import Shown, Table
from keras_pnn.devices.axis import Axis
from keras_pnn.devices.named import named_deviations, read_csv, write_csv
from keras_pnn.layers.context import keeping, restoring
from keras_pnn.layers.lookup import architecture, physical_layers, quantities
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.quantity import Quantity

_FORMAT = "keras_pnn.devices/1"


class SimulatedDevice(Shown):
    """Holds the imperfections of one device, for models of one architecture.

    `from_dict` and `from_csv` take names, such as `"mrr_bank_1/resonance_shift"`.

    `chip + warmer` adds the deviations of both devices, in the variables' units: scales
    of 1.1 and 1.2 add to 1.3, and power imbalances of splitters add as splitter angles.

    Args:
        deviations: `{(name, index): array}`, the deviation from the nominal value
            of the `index`-th variable of that name in the model's order of layers.
        architecture: `{name: shapes}`, the shapes of all variables of these names
            in the device's model. Default: those of the deviations.
        label: a name for tables.

    Raises:
        ValueError: If a deviation is not finite, or does not have the shape that
            `architecture` gives for its index.

    Example:

    >>> device = pnn.Variation(resonance_shift=0.08).sample(model, 1, seed=0)[0]
    >>> with device.installed(model):
    ...     model.evaluate(x_test, y_test)
    """

    def __init__(
        self,
        deviations: dict[tuple[str, int], np.ndarray],
        architecture: dict[str, list[list[int]]] | None = None,
        label: str = "",
    ):
        if not isinstance(deviations, dict) or not all(
            isinstance(key, tuple) and len(key) == 2 for key in deviations
        ):
            expected = (
                "a dictionary {(name, index): array}; SimulatedDevice.from_dict(model, "
                "…) takes names such as 'temperature' and 'mrr_bank/temperature'"
            )
            raise _checks.error("deviations", expected, _checks.short(deviations))
        arrays = {key: _files.storable(a) for key, a in deviations.items()}
        if architecture is None:
            architecture = {}
            for name, index in sorted(arrays):
                shape = list(arrays[name, index].shape)
                architecture.setdefault(name, []).append(shape)
        for (name, index), array in arrays.items():
            _checks.finite(f"{name}[{index}]", array)
            shapes = dict(enumerate(architecture.get(name, ())))
            if list(array.shape) != list(shapes.get(index, (None,))):
                raise ValueError(
                    f"Deviations of {name} must have an index and the shape that goes "
                    f"with it, of {shapes}. Received: index {index}, shape "
                    f"{list(array.shape)}"
                )
        self.deviations, self.architecture = arrays, architecture
        self.label = label
        self._attached: dict[int, dict[str, tuple[Quantity, np.ndarray]]] = {}

    @classmethod
    def from_dict(
        cls, model: keras.layers.Layer, deviations: dict, label: str = ""
    ) -> "SimulatedDevice":
        """Creates a device from deviations by name.

        Args:
            model: a built model of the device's architecture.
            deviations: name, as in `Variation`, → deviation from the nominal value, in
                the imperfection's unit: a number for every element, or an array in the
                variable's shape.
            label: a name for tables.

        Raises:
            ValueError: If a name is unknown, two names set one variable, or a value
                is not finite, has another shape or is out of range.

        Example:

        >>> chip = pnn.SimulatedDevice.from_dict(
        ...     model, {"mrr_bank/resonance_shift": shifts, "temperature": 1.0}
        ... )
        """
        return cls(*named_deviations(model, deviations), label)

    @classmethod
    def from_csv(
        cls, model: keras.layers.Layer, path: str | os.PathLike, label: str = ""
    ) -> "SimulatedDevice":
        """Reads a device from a CSV file.

            layer,imperfection,index,deviation,unit
            mrr_bank,resonance_shift,0;0,0.031,nm
            mrr_bank,resonance_shift,0;1,-0.012,nm
            ,temperature,,1.0,K

        A line without a layer applies to all layers that have the imperfection; a line
        without an index applies to every element. All else is nominal.

        Semicolons or tabs may separate cells, and lines that begin with `#` are
        skipped. The column `unit` may be left out.

        Raises:
            ValueError: If a column is missing, a name, an index or a unit does not fit
                the model, a number is not finite, an element is missing or given
                twice, or a file of `to_csv` was cut short. The error names the file
                and the line.
            OSError: If the file cannot be read.
        """
        return cls.from_dict(model, read_csv(model, path), label)

    def to_csv(self, model: keras.layers.Layer, path: str | os.PathLike) -> None:
        """Writes the device in the format of `from_csv`.

        Raises:
            ValueError: As in `bind`; or if two layers share a name, as in a
                `Bidirectional`: use `DeviceSet.save`, which numbers them.
        """
        write_csv(self.bind(model), path)

    def __getstate__(self):
        # Without the attached model, as a device may be sent to another process.
        return {**vars(self), "_attached": {}}

    def __add__(self, other: "SimulatedDevice") -> "SimulatedDevice":
        if not isinstance(other, SimulatedDevice):
            return NotImplemented
        shapes = _joint_architecture((self, other))
        sums = dict(self.deviations)
        for key, deviation in other.deviations.items():
            sums[key] = sums[key] + deviation if key in sums else deviation
        labels = [device.label for device in (self, other) if device.label]
        # A label such as "+1 K" has its sign already.
        label = re.sub(r"\+ (?=[+−-])", "", " + ".join(labels))
        return SimulatedDevice(sums, shapes, label)

    def bind(self, model: keras.layers.Layer) -> list[tuple[Quantity, np.ndarray]]:
        """Pairs the model's variables with this device's deviations, ordered by name.

        Raises:
            ValueError: If the device comes from another architecture, or takes an
                imperfection beyond its bound (a scale of 0).
        """
        known = {(q.name, q.index): q for q in quantities(model)}
        theirs = architecture(model, self.architecture)
        other = {n: s for n, s in self.architecture.items() if s != theirs[n]}
        if other:
            shapes = [
                f"{q.path} of shape {tuple(q.variable.shape)}"
                for q in known.values()
                if q.name in other
            ]
            raise ValueError(
                f"The device must come from the architecture of model '{model.name}', "
                f"with {', '.join(shapes) or f'no {list(other)}'}. Received: device "
                f"{self.label!r} with the shapes {other}"
            )
        pairs = [(known[key], self.deviations[key]) for key in sorted(self.deviations)]
        for quantity, deviation in pairs:
            quantity.check(deviation)
        return pairs

    def values(
        self, model: keras.layers.Layer
    ) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Returns (variable, value) pairs, as `Overrides` takes them."""
        return [(q.variable, q.value(d)) for q, d in self.bind(model)]

    @contextlib.contextmanager
    def installed(self, model: keras.layers.Layer) -> Iterator["SimulatedDevice"]:
        """Gives the model this device's imperfections until the block ends.

        They replace those of a device installed around this block. Drift and noise add
        to them. The device stays installed when weights are loaded inside. The previous
        values are restored bit for bit.

        Raises:
            ValueError: As in `bind`; nothing is installed then.
        """
        pairs = self.values(model)
        variables = [variable for variable, _ in pairs]
        with restoring(variables), keeping(variables):
            for variable, value in pairs:
                variable.assign(value)
            yield self

    def attach(self, model: keras.layers.Layer) -> "SimulatedDevice":
        """Prepares `measure` for the layers of a model.

        Imperfections that the device sets are its own, plus what drift, noise and eq. 5
        add in the step. All others are the model's at the time of the measurement.

        Raises:
            ValueError: As in `bind`; or if the device deviates in weights, which a
                measurement of the physical layers does not show.
        """
        attached = {id(la): {} for la in physical_layers(model)}
        for quantity, deviation in self.bind(model):
            if quantity.nominal is None:
                raise ValueError(
                    "A device that is measured must deviate in imperfections alone; "
                    f"weights deviate in `installed`. Received: {quantity.name}"
                )
            # An array: a tensor would belong to the graph that is being traced.
            value = (quantity.nominal + deviation).astype(quantity.variable.dtype)
            attached[id(quantity.layer)][quantity.name] = quantity, value
        self._attached = attached
        return self

    def measure(self, layer: PhysicalLayer, inputs, controls: dict) -> tf.Tensor:
        """Returns the outputs of one layer on this device, inside the graph.

        Args:
            layer: a physical layer.
            inputs: its inputs, for a whole batch.
            controls: its controls, name to tensor.

        Raises:
            ValueError: If `attach` was not called with the layer's model.
        """
        return layer.forward(inputs, controls, self.imperfections(layer))

    def monitor(
        self, layer: PhysicalLayer, fields, controls: dict, backwards: bool = False
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Returns intensities at the phase shifters of a mesh, as `MZIMesh.monitor`.

        Raises:
            ValueError: As in `measure`.
        """
        return layer.monitor(fields, controls, self.imperfections(layer), backwards)

    def imperfections(self, layer: PhysicalLayer) -> dict[str, tf.Tensor]:
        """Returns the imperfections of one layer on this device, name to tensor.

        Raises:
            ValueError: As in `measure`.
        """
        if id(layer) not in self._attached:
            raise ValueError(
                "`attach` must be called with the layer's model before `measure`. "
                f"Received: layer '{layer.name}'"
            )
        imperfections = layer.current_values()[1]
        for name, (quantity, value) in self._attached[id(layer)].items():
            imperfections[name] = quantity.joined(value, quantity.passing())
        return imperfections

    def _parts(self):
        return [repr(self)[1:-1], _deviation_table([self])]

    def __repr__(self):
        label = f" {self.label!r}" if self.label else ""
        return f"<SimulatedDevice{label}: {_names(self)}>"


class DeviceSet(Shown, Sequence):
    """A sequence of simulated devices, saved and loaded as one `.npz` file.

    All of them set the same variables: a variable that a given device does not set, and
    another does, gets deviation 0.

    Args:
        devices: the devices.
        axes: the `Axis` objects of a sweep or a grid; the last one varies fastest. A
            slice of the devices has none.

    Raises:
        ValueError: If the devices come from different architectures, or their number is
            not that of the axes' points.

    Example:

    >>> devices = pnn.Variation(resonance_shift=0.08).sample(model, 4, seed=0)
    >>> devices.save("chips.npz")
    >>> len(pnn.DeviceSet.load("chips.npz"))
    4
    """

    def __init__(self, devices: Iterable[SimulatedDevice], axes: tuple[Axis, ...] = ()):
        self._devices, self.axes = _alike(tuple(devices)), tuple(axes)
        points = math.prod(map(len, self.axes))
        if self.axes and points != len(self._devices):
            expected = f"axes with one point for each of {len(self._devices)} devices"
            raise _checks.error("axes", expected, f"{points} points")

    def __len__(self):
        return len(self._devices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return DeviceSet(self._devices[index])
        return self._devices[index]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the devices to `path` (`.npz`, arrays only)."""
        one = self[0] if self._devices else SimulatedDevice({})
        header = {
            "format": _FORMAT,
            "labels": [d.label for d in self],
            "keys": list(one.deviations),
            "architecture": one.architecture,
        }
        if self.axes:
            header["axes"] = [(a.name, a.unit, a.values.tolist()) for a in self.axes]
        arrays = {
            f"a{i}": np.stack([d.deviations[key] for d in self])
            for i, key in enumerate(one.deviations)
        }
        # To a file, since NumPy would add a suffix to a path.
        with _files.atomic(path) as part, open(part, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DeviceSet":
        """Reads devices that `save` wrote.

        Raises:
            ValueError: If the file was not written by `save`, or is cut short.
            FileNotFoundError: If there is no file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["format"] != _FORMAT:
                    raise KeyError(header["format"])
                keys = [(name, int(index)) for name, index in header["keys"]]
                shapes = header["architecture"]
                stacks = [file[f"a{i}"] for i in range(len(keys))]
                rows = list(zip(header["labels"], *stacks, strict=True))
                axes = [
                    Axis(str(name), str(unit), np.array(values, "float64"))
                    for name, unit, values in header.get("axes", ())
                ]
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                "Argument `path` must be an .npz file written by `DeviceSet.save`. "
                f"Received: {os.fspath(path)} ({type(error).__name__}: {error})"
            ) from error
        devices = (
            SimulatedDevice(dict(zip(keys, arrays, strict=True)), shapes, label)
            for label, *arrays in rows
        )
        return cls(devices, axes)

    def _parts(self):
        return [repr(self)[1:-1], _deviation_table(self)] if self else [repr(self)]

    def __repr__(self):
        along = "".join(f", along {axis.label}" for axis in self.axes)
        names = f": {_names(self[0])}" if self else ""
        count = f"{len(self)} device{'' if len(self) == 1 else 's'}"
        return f"<DeviceSet of {count}{along}{names}>"


def _deviation_table(devices: Sequence[SimulatedDevice]) -> Table:
    """Returns one row for each variable that the devices deviate in."""
    rows = []
    for key in sorted(devices[0].deviations):
        values = np.stack([d.deviations[key] for d in devices]).astype("float64")
        figures = np.sqrt(np.mean(values**2)), values.min(), values.max()
        shape = str(values.shape[1:])
        rows.append((f"{key[0]}[{key[1]}]", shape, *(f"{v:.4g}" for v in figures)))
    title = "Deviations from nominal, each in its imperfection's unit"
    columns = ("", "shape", "root mean square", "smallest", "largest")
    return Table(title, columns, rows)


def _names(device: SimulatedDevice) -> str:
    """Returns the names that a device sets, with a count for several variables."""
    counts = collections.Counter(name for name, _ in sorted(device.deviations))
    texts = (name if n == 1 else f"{name} × {n}" for name, n in counts.items())
    return ", ".join(texts) or "nominal"


def _joint_architecture(devices: Iterable[SimulatedDevice]) -> dict:
    """Returns the shapes of all variables that the devices name."""
    shapes: dict[str, list[list[int]]] = {}
    for device in devices:
        for name, own in device.architecture.items():
            if shapes.setdefault(name, own) != own:
                raise ValueError(
                    "Devices must come from one architecture. Received: device "
                    f"{device.label!r} with {name} of shapes {own}, where another has "
                    f"{shapes[name]}"
                )
    return shapes


def _alike(devices: tuple[SimulatedDevice, ...]) -> tuple[SimulatedDevice, ...]:
    """Returns devices that all set the same variables, by 0 where they did not."""
    keys = {key for device in devices for key in device.deviations}
    shapes = _joint_architecture(devices)
    zeros = {(n, i): np.zeros(shapes[n][i], "float32") for n, i in sorted(keys)}
    return tuple(
        device
        if device.deviations.keys() == keys and device.architecture == shapes
        else SimulatedDevice({**zeros, **device.deviations}, shapes, device.label)
        for device in devices
    )
