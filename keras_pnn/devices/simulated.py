"""One simulated device: the imperfections that make it differ from the design."""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_pnn.layers.context import keeping
from keras_pnn.layers.lookup import architecture, find, physical_layers, quantities
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.quantity import Quantity


class SimulatedDevice:
    """The imperfections of one device, for models of one architecture.

    Args:
        deviations: `{(name, index): array}`, the deviation from the nominal value
            of the `index`-th variable of that name in the model's order of layers.
        architecture: `{name: shapes}`, the shapes of all variables of these names
            in the model it was made for. Default: those of the deviations.
        label: a name for tables.

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
        # NumPy's files cannot hold bfloat16, of kind "V".
        arrays = {
            key: a.astype("float32") if a.dtype.kind == "V" else a
            for key, a in ((k, np.asarray(v)) for k, v in deviations.items())
        }
        for (name, index), array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(
                    f"A deviation must be finite. Received: NaN or infinity in "
                    f"{name}[{index}]"
                )
        self.deviations = arrays
        self._attached: dict[int, dict[str, np.ndarray]] = {}
        self.label = label
        if architecture is None:
            architecture = {}
            for name, index in sorted(arrays):
                shape = list(arrays[name, index].shape)
                architecture.setdefault(name, []).append(shape)
        for (name, index), array in arrays.items():
            shapes = dict(enumerate(architecture.get(name, ())))
            if list(array.shape) != list(shapes.get(index, (None,))):
                raise ValueError(
                    f"Deviations of {name} must have an index and the shape that goes "
                    f"with it, of {shapes}. Received: index {index}, shape "
                    f"{list(array.shape)}"
                )
        self.architecture = architecture

    def bind(self, model: keras.layers.Layer) -> list[tuple[Quantity, np.ndarray]]:
        """Pairs the model's variables with this device's deviations.

        Raises:
            ValueError: the device comes from another architecture, or takes an
                imperfection to values that do not exist (a scale of 0).
        """
        known = {(t.name, t.index): t for t in quantities(model)}
        theirs = architecture(model, self.architecture)
        if theirs != self.architecture:
            raise ValueError(
                f"The device must come from the architecture of model '{model.name}', "
                f"whose shapes are {theirs}. Received: a device with the shapes "
                f"{self.architecture}"
            )
        # In one order, whatever the order in which they were given.
        pairs = [(known[key], self.deviations[key]) for key in sorted(self.deviations)]
        for target, array in pairs:
            target.check(array)
        return pairs

    def values(
        self, model: keras.layers.Layer
    ) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Returns (variable, value) pairs, as `keras.StatelessScope` takes them."""
        return [(t.variable, t.value(a)) for t, a in self.bind(model)]

    @contextlib.contextmanager
    def installed(self, model: keras.layers.Layer) -> Iterator["SimulatedDevice"]:
        """Gives the model this device's imperfections until the block ends.

        The previous values come back bit for bit, also when the body raises. Weights
        that are loaded inside, as when a run is resumed, leave the device installed.

        Raises:
            ValueError: as in `bind`; nothing is installed then.
        """
        pairs = self.values(model)
        before = [(v, v.numpy()) for v, _ in pairs]
        try:
            for variable, value in pairs:
                variable.assign(value)
            with keeping(v for v, _ in pairs):
                yield self
        finally:
            for variable, value in before:
                variable.assign(value)

    def measure(self, layer: PhysicalLayer, inputs, controls: dict):
        """Returns the outputs of one layer on this device, inside the graph.

        Args:
            layer: a physical layer of a model that `attach` was called with.
            inputs: its inputs, for a whole batch.
            controls: its controls, name to tensor.

        Raises:
            ValueError: `attach` was not called with the layer's model.
        """
        if id(layer) not in self._attached:
            raise ValueError(
                "`attach` must be called with the layer's model before `measure`. "
                f"Received: layer '{layer.name}'"
            )
        mine = self._attached[id(layer)]
        imperfections = {
            n: tf.convert_to_tensor(mine.get(n, v))
            for n, v in layer.imperfections.items()
        }
        return layer.forward(inputs, controls, imperfections)

    def attach(self, model: keras.layers.Layer) -> "SimulatedDevice":
        """Prepares `measure` for the layers of a model.

        Imperfections that the device does not name are those of the model at the time
        of the measurement, as in `installed`.

        Raises:
            ValueError: as in `bind`; or the device deviates in weights, which a
                measurement of the physical layers does not show.
        """
        attached = {id(la): {} for la in physical_layers(model)}
        for target, array in self.bind(model):
            if target.nominal is None:
                raise ValueError(
                    "A device that is measured deviates in imperfections alone; "
                    f"weights deviate in `installed`. Received: {target.name}"
                )
            # An array: a tensor would belong to the graph that is being traced.
            value = (target.nominal + array).astype(target.variable.dtype)
            attached[id(target.layer)][target.name] = value
        self._attached = attached
        return self

    def __repr__(self):
        names = sorted({name for name, _ in self.deviations})
        return f"<SimulatedDevice {self.label} {', '.join(names)}>"


class DeviceSet(Sequence):
    """A sequence of simulated devices, saved and loaded as one `.npz` file.

    Args:
        devices: the devices, which deviate in the same variables.

    Raises:
        ValueError: the devices deviate in different variables.
    """

    def __init__(self, devices: Sequence[SimulatedDevice]):
        self._devices = tuple(devices)
        for device in self._devices:
            first = self._devices[0]
            if (
                device.deviations.keys() != first.deviations.keys()
                or device.architecture != first.architecture
            ):
                raise ValueError(
                    "`devices` must deviate in the same variables. "
                    f"Received: {first!r} and {device!r}"
                )

    def __len__(self):
        return len(self._devices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return DeviceSet(self._devices[index])
        return self._devices[index]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the devices to `path` (`.npz`, arrays only)."""
        keys = list(self[0].deviations) if self._devices else []
        header = {
            "format": "keras_pnn.devices/1",
            "labels": [d.label for d in self],
            "keys": keys,
            "architecture": self[0].architecture if self._devices else {},
        }
        arrays = {
            f"a{i}": np.stack([d.deviations[key] for d in self])
            for i, key in enumerate(keys)
        }
        temporary = f"{os.fspath(path)}.part"
        with open(temporary, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DeviceSet":
        """Reads devices that `save` wrote.

        Raises:
            ValueError: the file is not such a file, or is cut short.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["format"] != "keras_pnn.devices/1":
                    raise KeyError(header["format"])
                keys = [(name, int(index)) for name, index in header["keys"]]
                labels, shapes = header["labels"], header["architecture"]
                stacks = [file[f"a{i}"] for i in range(len(keys))]
                rows = list(zip(labels, *stacks, strict=True))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"`path` must be an .npz file written by `DeviceSet.save`. "
                f"Received: {os.fspath(path)} ({type(error).__name__}: {error})"
            ) from error
        devices = []
        for label, *arrays in rows:
            deviations = dict(zip(keys, arrays, strict=True))
            devices.append(SimulatedDevice(deviations, shapes, label))
        return cls(devices)


def sweep(model: keras.layers.Layer, name: str, values) -> DeviceSet:
    """Returns one device for each value of one imperfection, ideal otherwise.

    Args:
        model: a built model.
        name: an imperfection of all layers (`"temperature"`) or of one
            (`"mrr_bank_1/temperature"`).
        values: deviations from the nominal value, in the imperfection's unit: 0.05
            is a `"scale"` of 1.05. Either (n,), each for every element, or (n, …) to
            give the elements of one their own: a plain number moves `"shift"` alike
            in y and x, and one pixel down alone is written `[(1, 0)]`.

    Raises:
        ValueError: the model has nothing of that name; a value is not finite, of
            another shape, or takes the imperfection to what does not exist (a scale
            of 0).

    Example:

    >>> warm = pnn.devices.sweep(model, "temperature", np.linspace(-2, 2, 9))
    >>> pnn.evaluate_devices(model, x_test, y_test, warm)["accuracy"]
    """
    return grid(model, {name: values})


def grid(model: keras.layers.Layer, values: dict) -> DeviceSet:
    """Returns one device for each combination of values of several imperfections.

    The last name varies fastest, so that a result in the shape of the values'
    lengths has one axis for each name.

    Args:
        model: a built model.
        values: name → values, each as in `sweep`.

    Raises:
        ValueError: as in `sweep`; two names address one variable, or there is none.

    Example:

    >>> moved = pnn.devices.grid(
    ...     model, {"rotation": [-1, 0, 1], "shift": [(0, 0), (1, 0), (0, 1)]}
    ... )
    >>> accuracy = pnn.evaluate_devices(model, x_test, y_test, moved)["accuracy"]
    >>> np.reshape(accuracy, (3, 3))            # rotation, shift
    """
    if not values:
        raise ValueError(
            "`values` must name at least one imperfection, such as "
            f"{{'temperature': [-1, 0, 1]}}. Received: {values!r}"
        )
    axes, keys = [], {}
    for name, points in values.items():
        points = _numbers_of(name, points)
        found = find(model, name, weights=True)
        for key in ((t.name, t.index) for t in found):
            if key in keys:
                raise ValueError(
                    "An imperfection must be given once. Received: "
                    f"{keys[key]!r} and {name!r}, which both set it"
                )
            keys[key] = name
        axes.append([_deviations(name, found, p) for p in np.atleast_1d(points)])
    shapes = architecture(model, {name for name, _ in keys})
    devices = []
    for chosen in itertools.product(*axes):
        merged = {k: v for _, deviations in chosen for k, v in deviations.items()}
        label = ", ".join(text for text, _ in chosen)
        devices.append(SimulatedDevice(merged, shapes, label))
    return DeviceSet(devices)


def _numbers_of(name: str, points) -> np.ndarray:
    try:
        points = np.asarray(points)
        if points.dtype.kind not in "biufV":
            raise ValueError(f"dtype {points.dtype}")
        return points.astype("float64")
    except ValueError as error:
        raise ValueError(
            f"Values of {name!r} must be real numbers, or arrays of them. "
            f"Received: {error}"
        ) from None


def _deviations(
    name: str, found: list[Quantity], point: np.ndarray
) -> tuple[str, dict]:
    """A label, and what each target deviates by at one point of a sweep."""
    deviations = {}
    for target in found:
        shape = tuple(target.variable.shape)
        try:
            amount = np.broadcast_to(point, shape)
        except ValueError:
            raise ValueError(
                f"Values of {name!r} must be numbers, or arrays of shape {shape}. "
                f"Received: an array of shape {point.shape}"
            ) from None
        if target.nominal is not None:
            _, _, short = name.rpartition("/")
            nominal = target.nominal if target.convert is None else 0.0
            target.layer.check_given(short, nominal + amount)
        amount = tf.constant(amount, target.variable.dtype)
        deviation = np.asarray(target.deviation(amount))
        target.check(deviation)
        deviations[target.name, target.index] = deviation
    return f"{name} = {_text(found, point)}", deviations


def _text(found: list[Quantity], point: np.ndarray) -> str:
    """A point of a sweep, with what it is added to where that is not 0."""
    text = ", ".join(f"{v:g}" for v in np.ravel(point))
    text = text if point.ndim == 0 else f"({text})"
    # What is converted (a power imbalance) is not in the unit of the nominal value.
    nominal = {t.nominal for t in found if t.convert is None} - {None}
    if nominal <= {0}:
        return text
    # Layers of other designs differ in it.
    base = f"{nominal.pop():g}" if len(nominal) == 1 else "nominal"
    negative = point.ndim == 0 and point < 0
    return f"{base} - {text[1:]}" if negative else f"{base} + {text}"
