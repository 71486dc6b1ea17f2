"""Measure the layers of a model on a device, for a calibration."""

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.layers.physical import PhysicalLayer


def reader(device, model) -> Callable:
    """Returns a function that measures a layer, NumPy in and out.

    It returns `None` where the device leaves the layer to the model.
    """
    if hasattr(device, "acquire"):
        names = getattr(device, "layers", None)
        if hasattr(device, "attach"):
            device.attach(model)

        def acquire(layer, inputs, controls):
            if names is not None and layer.name not in names:
                return None
            return device.acquire(layer, inputs, controls)

        return acquire
    if not callable(getattr(device, "measure", None)):
        expected = "a device with `measure(layer, inputs, controls)`"
        raise _checks.error("device", expected, repr(device))
    if hasattr(device, "attach"):
        # A copy, since the device may be attached to another model.
        device = copy.copy(device).attach(model)

    def measure(layer, inputs, controls):
        controls = {n: tf.convert_to_tensor(c) for n, c in controls.items()}
        outputs = device.measure(layer, tf.convert_to_tensor(inputs), controls)
        return None if outputs is None else np.asarray(outputs)

    return measure


class Recorder:
    """Measures a model's layers on a device, and records the inputs of each."""

    def __init__(self, read: Callable):
        self._read = read
        self._inputs: dict[int, list[np.ndarray]] = {}
        self._outputs: dict[int, tf.TensorSpec] = {}

    def measure_in_graph(self, layer, inputs, controls, modelled):
        inputs = np.asarray(inputs)
        controls = {name: np.asarray(c) for name, c in controls.items()}
        outputs = self._read(layer, inputs, controls)
        if outputs is None:
            return None
        self._inputs.setdefault(id(layer), []).append(inputs)
        expected = tf.TensorSpec(modelled.shape, modelled.dtype)
        self._outputs.setdefault(id(layer), expected)
        return tf.convert_to_tensor(checked(layer, outputs, expected))

    def __contains__(self, layer: PhysicalLayer) -> bool:
        return id(layer) in self._inputs

    def seen(self, layer: PhysicalLayer) -> tuple[np.ndarray, tf.TensorSpec]:
        """Returns the layer's inputs, of all its calls, and the form of its outputs."""
        first, *others = self._inputs[id(layer)]
        # Where images of several sizes pass, those of the first size.
        alike = [a for a in others if a.shape[1:] == first.shape[1:]]
        return np.concatenate([first, *alike]), self._outputs[id(layer)]


def checked(layer, outputs, expected: tf.TensorSpec) -> np.ndarray:
    """Returns a reading in the dtype of the layer's outputs.

    Raises:
        ValueError: If its shape or kind is not theirs, or it is not finite.
    """
    outputs = np.asarray(outputs)
    shape = tuple(expected.shape)
    # An amplitude is not a field: its phase would count as 0.
    other_kind = (outputs.dtype.kind == "c") != expected.dtype.is_complex
    if outputs.shape != shape or outputs.dtype.kind not in "fciuV" or other_kind:
        raise ValueError(
            f"The device's outputs of layer '{layer.name}' must have the shape {shape} "
            f"and fit the dtype {expected.dtype.name}. "
            f"Received: shape {outputs.shape}, dtype {outputs.dtype}"
        )
    outputs = outputs.astype(expected.dtype.as_numpy_dtype)
    if not np.isfinite(outputs).all():
        raise ValueError(
            f"The device's outputs of layer '{layer.name}' must be finite. Received: "
            f"{np.count_nonzero(~np.isfinite(outputs))} of {outputs.size} are not"
        )
    return outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Readings:
    """Inputs and outputs of one layer, at each setting of its controls."""

    layer: PhysicalLayer
    inputs: np.ndarray  # (samples, …), the same at all settings
    controls: list[dict[str, np.ndarray]]
    outputs: np.ndarray  # (settings, samples, …)
    fit: np.ndarray  # (settings, samples), False where held out

    @property
    def powers(self) -> np.ndarray:
        """|reading|² of each sample, (settings, samples)."""
        values = self.outputs.reshape(*self.fit.shape, -1)
        wide = "complex128" if values.dtype.kind == "c" else "float64"
        return np.sum(np.abs(values.astype(wide)) ** 2, axis=2)


def measure(
    layer, inputs, controls: list[dict], output: tf.TensorSpec, read: Callable
) -> Iterator[np.ndarray]:
    """Yields the layer's outputs at each setting of its controls."""
    expected = tf.TensorSpec((len(inputs), *output.shape[1:]), output.dtype)
    for setting in controls:
        yield checked(layer, read(layer, inputs, setting), expected)


def split(settings: int, samples: int, holdout: float, rng) -> np.ndarray:
    """Returns which readings are fitted, (settings, samples); False is held out."""
    fit = np.ones((settings, samples), bool)
    # The present setting, the first, is always fitted: it is the one in use.
    fit[settings - share(holdout, settings) :] = False
    fit[:, rng.permutation(samples)[: share(holdout, samples)]] = False
    return fit


def share(holdout: float, total: int) -> int:
    """Returns how many of `total` are held out: at least one, and not all."""
    return min(max(1, round(holdout * total)), total - 1)


def of_layer(values: dict, layer: PhysicalLayer, name: str):
    """Returns the value given for one layer, else for all layers, else `None`."""
    return values.get(f"{layer.name}/{name}", values.get(name))
