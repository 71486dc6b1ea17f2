"""Follow light from plane to plane through a model."""

import contextlib

import keras
import numpy as np

from keras_pnn import _checks, _keras
from keras_pnn.layers.context import Overrides
from keras_pnn.layers.detector_array import DetectorArray
from keras_pnn.layers.fields import PlaneOutputs
from keras_pnn.physics import detection


def light_path(
    model: keras.Model, inputs
) -> list[tuple[keras.layers.Layer, np.ndarray]]:
    """Returns each use of a layer that acts on planes, with the intensity behind it.

    Uses are in the order in which they run, intensities of shape (samples, height,
    width). For a `DetectorArray`, it is the intensity that falls on it.
    """
    layers = [
        layer
        for layer in _keras.flat_layers(model)
        if isinstance(layer, PlaneOutputs | DetectorArray)
    ]
    if not layers:
        return []
    # A model may have a fixed batch size; samples are then repeated to fill it.
    count, found = _checks.sample_count(inputs), []
    graph = _keras.functional(model)
    batch = graph.inputs[0].shape[0] if graph is not None else None
    inputs = keras.tree.map_structure(
        lambda a: np.resize(a, (batch or count, *np.shape(a)[1:])), inputs
    )

    def recorded(layer):
        call = layer.call

        def run(inputs):
            outputs = call(inputs)
            seen = inputs if isinstance(layer, DetectorArray) else outputs
            found.append((layer, np.asarray(detection.intensity(seen))[:count]))
            return outputs

        return run

    with contextlib.ExitStack() as stack:
        # The scope leaves states, such as those of noise, as they are.
        stack.enter_context(Overrides().scope(model))
        for layer in layers:
            stack.enter_context(_keras.replaced_call(layer, recorded(layer)))
        model(inputs, training=False)
    return found


def on_detectors(layer: DetectorArray, light: np.ndarray) -> np.ndarray:
    """Returns the power that falls on all detectors, of shape (samples,)."""
    return sum(
        light[:, y : y + height, x : x + width].sum((1, 2))
        for y, x, height, width in layer.placed(light.shape[1:])
    )
