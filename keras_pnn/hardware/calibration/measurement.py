"""Measure a model's layers on a device at random inputs and controls."""

import copy
import dataclasses

import numpy as np
import tensorflow as tf

from keras_pnn import _checks
from keras_pnn.hardware.acquisition import not_finite, usable
from keras_pnn.hardware.device import HardwareDevice
from keras_pnn.layers.limits import ControlRange
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.ring_layer import RingLayer
from keras_pnn.physics.tuning import RingTunings


class Recorder:
    """Measures a model's layers on a device, and records the inputs of each."""

    def __init__(self, device, model):
        if not callable(getattr(device, "measure", None)):
            expected = "a device with `measure(layer, inputs, controls)`"
            raise _checks.error("device", expected, repr(device))
        if isinstance(device, HardwareDevice):
            device.attach(model)
        elif hasattr(device, "attach"):
            # A copy, since the device may be attached to another model.
            device = copy.copy(device).attach(model)
        self._device = device
        # id of a layer → the inputs of all its calls, and the first outputs.
        self._seen: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}

    def measure_in_graph(self, layer, inputs, controls, modelled):
        inputs = np.asarray(inputs)
        controls = {name: np.asarray(c) for name, c in controls.items()}
        outputs = self.read(layer, inputs, controls, modelled.shape, modelled.dtype)
        if outputs is None:
            return None
        self._seen.setdefault(id(layer), ([], outputs))[0].append(inputs)
        return tf.convert_to_tensor(outputs)

    def read(self, layer, inputs, controls, shape, dtype) -> np.ndarray | None:
        """Measures a layer; returns `None` if the device leaves it to the model."""
        device, dtype = self._device, np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
        if isinstance(device, HardwareDevice):
            if device.layers is not None and layer.name not in device.layers:
                return None
            return device.acquire(layer, inputs, controls, shape, dtype)
        controls = {n: tf.convert_to_tensor(c) for n, c in controls.items()}
        outputs = device.measure(layer, tf.convert_to_tensor(inputs), controls)
        if outputs is None:
            return None
        outputs = np.asarray(outputs)
        if outputs.dtype.kind in "iu":
            outputs = outputs.astype("float64")
        try:
            outputs = usable(outputs, tuple(shape), dtype)
            if (error := not_finite(outputs, dtype)) is not None:
                raise error
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(f"Layer '{layer.name}': {error}") from error
        return outputs.astype(dtype)

    def __contains__(self, layer: PhysicalLayer) -> bool:
        return id(layer) in self._seen

    def inputs(self, layer: PhysicalLayer) -> np.ndarray:
        """Returns the inputs of all calls of a layer."""
        (first, *others), _ = self._seen[id(layer)]
        # If images of several sizes pass, only those of the first size.
        alike = [a for a in others if a.shape[1:] == first.shape[1:]]
        return np.concatenate([first, *alike])

    def readings(self, layer, inputs, controls: list[dict], fit, bar) -> "Readings":
        """Measures a layer at all settings of its controls; see `Readings`."""
        _, outputs = self._seen[id(layer)]
        shape, measured = (len(inputs), *outputs.shape[1:]), []
        for setting in controls:
            measured.append(self.read(layer, inputs, setting, shape, outputs.dtype))
            bar.add(1)
        return Readings(layer, inputs, controls, np.stack(measured), fit)


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
        """The power |reading|² of each sample, (settings, samples)."""
        values = self.outputs.reshape(*self.fit.shape, -1)
        wide = "complex128" if values.dtype.kind == "c" else "float64"
        return np.sum(np.abs(values.astype(wide)) ** 2, axis=2)


def split(settings: int, samples: int, holdout: float, rng) -> np.ndarray:
    """Returns which readings are fitted, (settings, samples); False is held out."""
    fit = np.ones((settings, samples), bool)
    # The first setting, the present one, is in use and therefore always fitted.
    fit[settings - share(holdout, settings) :] = False
    fit[:, rng.permutation(samples)[: share(holdout, samples)]] = False
    return fit


def share(holdout: float, total: int) -> int:
    """Returns how many of `total` are held out: at least one, and not all."""
    return min(max(1, round(holdout * total)), total - 1)


def of_layer(values: dict, layer: PhysicalLayer, name: str):
    """Returns the value given for one layer, else for all layers, else `None`."""
    return values.get(f"{layer.name}/{name}", values.get(name))


def probes_like(own: np.ndarray, n: int, rng) -> np.ndarray:
    """Returns n random inputs within the range of the layer's own inputs."""
    shape = (n, *own.shape[1:])
    if own.dtype.kind == "c":
        amplitude = np.abs(own).max() * np.sqrt(rng.uniform(size=shape))
        values = amplitude * np.exp(2j * np.pi * rng.uniform(size=shape))
    else:
        # As floats, since NumPy's generators cannot subtract bfloat16 numbers.
        values = rng.uniform(float(own.min()), float(own.max()), shape)
    return values.astype(own.dtype)


def settings_of(layer, n: int, spread: dict, rng) -> list[dict[str, np.ndarray]]:
    """Returns the present controls and n − 1 random settings."""
    present = {name: np.asarray(v) for name, v in layer.controls.items()}
    steps = {name: of_layer(spread, layer, name) for name in present}
    return [present] + [
        {name: _drawn(layer, name, step, rng) for name, step in steps.items()}
        for _ in range(n - 1)
    ]


def _drawn(layer, name: str, step: float | None, rng) -> np.ndarray:
    """Returns random values of a control that its hardware and constraint allow."""
    quantity = layer.quantity(name)
    limits = quantity.variable.constraint
    present = np.asarray(quantity.variable)
    if step == 0:
        return present
    bounded = isinstance(limits, ControlRange) and limits.high is not None
    if step is None and isinstance(layer, RingLayer):
        value = _ring_controls(layer.tuning, limits, present.shape, rng)
    elif step is None and bounded:
        value = rng.uniform(limits.low, limits.high, present.shape)
    else:
        if step is None:
            rms = float(np.sqrt(np.mean(np.square(present))))
            step = np.pi if quantity.unit == "rad" else rms
        if step == 0:
            raise ValueError(
                f"`spread` must say how far '{quantity.path}' may be moved: all of it "
                "is 0 at present, and it has no limits. Received: no step in "
                f"{quantity.unit or '1'}"
            )
        value = present + step * rng.uniform(-1, 1, present.shape)
    value = np.asarray(value).astype(present.dtype)
    if limits is not None:
        value = np.asarray(limits(tf.convert_to_tensor(value)))
    return np.where(quantity.exists, value, present)


def _ring_controls(tuning, limits, shape: tuple, rng) -> np.ndarray:
    """Returns random controls that take rings through their resonance.

    They are uniform in nm, on both flanks if the control reaches both: on one flank
    alone, a ring shifted by its width looks like one that is shifted less. Weights
    within 5 % of an end of their range are left out: they hardly depend on the ring.
    """
    if isinstance(tuning, RingTunings):
        found = np.empty(shape)
        for one, here in tuning.by_ring():
            found[here] = _ring_controls(one, limits, (int(here.sum()),), rng)
        return np.clip(found, *tuning.control_range)
    low, high = tuning.weight_range
    ends = np.array([0.95 * low + 0.05 * high, 0.05 * low + 0.95 * high])
    near, far = np.sort(tuning.control(tuning.clip(ends)))
    first, last = (float(tuning.heater_shift(c)) for c in (near, far))
    least, most = tuning.control_range
    if isinstance(limits, ControlRange):
        least = max(least, limits.low)
        most = most if limits.high is None else min(most, limits.high)
    end = min(max(far, least, 1e-3), most)
    while end < most and float(tuning.heater_shift(end)) < 2 * last - first:
        end = min(1.1 * end, most)
    grid = np.linspace(least, end, 4097)
    weight = np.asarray(tuning.weight(grid))
    used = (weight >= ends[0]) & (weight <= ends[1])
    steps = np.diff(np.asarray(tuning.heater_shift(grid))) * used[1:]
    if not steps.any():
        return rng.uniform(least, end, shape)
    reached = np.concatenate([[0.0], np.cumsum(steps)])
    return np.interp(rng.uniform(0, reached[-1], shape), reached, grid)
