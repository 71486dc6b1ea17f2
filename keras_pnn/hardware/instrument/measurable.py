"""Check that instruments can measure a layer, and that the wiring fits it."""

from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_pnn import _checks, _keras
from keras_pnn.layers.context import substituting
from keras_pnn.layers.physical import PhysicalLayer, check_built

if TYPE_CHECKING:
    from keras_pnn.hardware.instrument.wiring import Wire, Wiring


def check_layer(layer: PhysicalLayer, wiring: "Wiring") -> None:
    """Checks a layer against the part of a configuration that belongs to it."""
    check_built(layer)
    shape = _input_shape(layer)
    inputs = len(wiring.inputs.numbers) if shape is None else shape[-1]
    outputs = _vector_outputs(layer, inputs, shape)
    if layer.controls.keys() != wiring.controls.keys():
        raise ValueError(
            f"The configuration must name the controls of layer '{layer.name}': "
            f"{', '.join(layer.controls)}. Received: {', '.join(wiring.controls)}"
        )
    for name, setting in wiring.controls.items():
        count = existing(layer, name, np.zeros(layer.controls[name].shape)).size
        _check_count(layer, setting, f"elements of {name}", count)
    _check_count(layer, wiring.inputs, "inputs", inputs)
    _check_count(layer, wiring.outputs, "outputs", outputs)
    _check_nothing_digital(layer)


def existing(layer: PhysicalLayer, name: str, control) -> np.ndarray:
    """Returns the elements of a control that the hardware has, in order."""
    control = np.asarray(control)
    exists = layer.quantity(name).mask
    if exists is None:
        return control.ravel()
    return control[np.broadcast_to(exists, control.shape)]


def _input_shape(layer: PhysicalLayer) -> tuple[int, ...] | None:
    """The shape of one sample that the layer was built for, if it is known."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    try:
        return tuple(int(n or 1) for n in shape[1:]) or None
    # Not built with the shape of one tensor.
    except TypeError:
        return None


def _vector_outputs(layer: PhysicalLayer, inputs: int, shape) -> int:
    """The number of outputs of a layer that maps real vectors to real vectors."""
    received = None
    # In functional models the layer's inputs are known.
    for tensor in (t for node in _keras.calls(layer) for t in node.input_tensors):
        if tensor.dtype.startswith("complex"):
            received = f"inputs of dtype {tensor.dtype}"
    # What maps vectors maps each vector along leading axes too.
    for probe in (shape or (inputs,), (inputs,)):
        received = received or _misfit(layer, probe)
    if received:
        raise ValueError(
            f"Layer '{layer.name}' must map vectors of real numbers to vectors of real "
            "numbers: instruments set powers and read detectors, one sample after the "
            "other, so that they measure neither fields nor the patches of an image. "
            "Remove the layer from `layers` of the configuration, and the model "
            "computes it; or measure it in a subclass of `HardwareDevice`; or put the "
            "detectors into a physical layer together with it. "
            f"Received: {type(layer).__name__} with {received}"
        )
    return _output_spec(layer, (1, inputs)).shape[-1]


def _output_spec(layer: PhysicalLayer, shape: tuple) -> keras.KerasTensor:
    """Returns shape and dtype of a layer's own outputs."""
    with substituting(None):
        return layer.compute_output_spec(keras.KerasTensor(shape, "float32"))


def _misfit(layer: PhysicalLayer, shape: tuple[int, ...]) -> str | None:
    """What the outputs for inputs of a shape are, if no real vectors."""
    try:
        outputs = _output_spec(layer, (1, *shape))
    # Whatever a layer raises, it does not take such inputs.
    except Exception as error:
        return f"an error for inputs of shape {shape}: {_checks.short(str(error))}"
    if not isinstance(outputs, keras.KerasTensor):
        return f"several outputs: {_checks.short(outputs)}"
    if outputs.dtype.startswith("complex"):
        return f"outputs of dtype {outputs.dtype}"
    if tuple(outputs.shape[:-1]) != (1, *shape[:-1]):
        return f"outputs of shape {outputs.shape[1:]} for inputs of shape {shape}"
    return None


def _check_nothing_digital(layer: PhysicalLayer) -> None:
    """Raises ValueError for what a layer adds to its optics."""
    activation = getattr(layer, "activation", None)
    linear = activation is None or activation is keras.activations.linear
    optical = [*layer.controls.values(), *layer.imperfections.values()]
    known = {id(v) for v in optical}
    weights = [v.name for v in _keras.own_variables(layer) if id(v) not in known]
    if weights or not linear:
        raise ValueError(
            f"Layer '{layer.name}' must have no bias and no activation, nor other "
            "weights than its controls, which the instruments do not apply: put them "
            "in layers of their own. Received: "
            f"weights {', '.join(weights) or 'none'}, "
            f"activation={getattr(activation, '__name__', activation)}"
        )


def _check_count(layer: PhysicalLayer, part: "Wire", what: str, count: int) -> None:
    if count != len(part.numbers):
        raise _checks.error(
            f"{part.where}.channels",
            f"{count}, the number of {what} of layer '{layer.name}'",
            f"{len(part.numbers)} channels",
        )
