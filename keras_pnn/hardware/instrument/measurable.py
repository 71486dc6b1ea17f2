"""Check that instruments can measure a layer, and that the wiring fits it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_pnn import _checks, _keras
from keras_pnn.layers.context import substituting
from keras_pnn.layers.physical import PhysicalLayer, check_built

if TYPE_CHECKING:
    from keras_pnn.hardware.instrument.wiring import Wiring


def check_layer(layer: PhysicalLayer, wiring: "Wiring") -> None:
    """Checks a layer against the part of a configuration that belongs to it."""
    check_built(layer)
    shape = _input_shape(layer)
    inputs = len(wiring.inputs.numbers) if shape is None else shape[-1]
    # A layer of vectors must also map each vector along leading axes.
    received = next(_misfits(layer, shape or (inputs,), (inputs,)), None)
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
    if layer.controls.keys() != wiring.controls.keys():
        raise ValueError(
            f"The configuration must name the controls of layer '{layer.name}': "
            f"{', '.join(layer.controls)}. Received: {', '.join(wiring.controls)}"
        )
    of_layer = f"of layer '{layer.name}'"
    for name, setting in wiring.controls.items():
        count = np.count_nonzero(layer.quantity(name).exists)
        setting.check_count(count, f"elements of {name} {of_layer}")
    wiring.inputs.check_count(inputs, f"inputs {of_layer}")
    outputs = _outputs(layer, (inputs,)).shape[-1]
    wiring.outputs.check_count(outputs, f"outputs {of_layer}")
    _check_nothing_digital(layer)


def existing(layer: PhysicalLayer, name: str, control) -> np.ndarray:
    """Returns the elements of a control that the hardware has, in order."""
    control = np.asarray(control)
    mask = layer.quantity(name).mask
    if mask is None:
        return control.ravel()
    return control[np.broadcast_to(mask, control.shape)]


def _input_shape(layer: PhysicalLayer) -> tuple[int, ...] | None:
    """Returns the sample shape that the layer was built for, `None` if unknown."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    try:
        return tuple(int(n or 1) for n in shape[1:]) or None
    # Not built with the shape of one tensor.
    except TypeError:
        return None


def _outputs(layer: PhysicalLayer, shape: tuple[int, ...]) -> keras.KerasTensor:
    """Returns the layer's symbolic outputs for one sample of a shape."""
    with substituting(None):
        return layer.compute_output_spec(keras.KerasTensor((1, *shape), "float32"))


def _misfits(layer: PhysicalLayer, *shapes: tuple[int, ...]) -> Iterator[str]:
    """Yields how a layer's inputs and outputs differ from real vectors."""
    # In functional models, the dtypes of the layer's inputs are known.
    for tensor in (t for node in _keras.calls(layer) for t in node.input_tensors):
        if tensor.dtype.startswith("complex"):
            yield f"inputs of dtype {tensor.dtype}"
    for shape in shapes:
        try:
            outputs = _outputs(layer, shape)
        # Any error means that the layer does not take such inputs.
        except Exception as error:
            yield f"an error for inputs of shape {shape}: {_checks.short(str(error))}"
            return
        if not isinstance(outputs, keras.KerasTensor):
            yield f"several outputs: {_checks.short(outputs)}"
        elif outputs.dtype.startswith("complex"):
            yield f"outputs of dtype {outputs.dtype}"
        elif tuple(outputs.shape[:-1]) != (1, *shape[:-1]):
            yield f"outputs of shape {outputs.shape[1:]} for inputs of shape {shape}"


def _check_nothing_digital(layer: PhysicalLayer) -> None:
    """Raises ValueError if a layer has an activation, or weights beyond its optics."""
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
