"""Follow fields through a model; refuse them where Keras drops the imaginary part."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.layers.detectors import BalancedDetector, Photodetector
from keras_pnn.layers.mixins import ConfiguredLayer, WideOutputs
from keras_pnn.physics._tensors import as_complex


class FieldOutputs(WideOutputs):
    """Gives a layer complex outputs (..., units)."""

    _single, _double = "complex64", "complex128"

    def compute_output_shape(self, input_shape) -> tuple:
        return (*input_shape[:-1], self.units)

    def call(self, inputs):
        # `fit` of a plain Keras model offers no other place for this check.
        model = _keras.model_in_training()
        if model is not None:
            check_fields(model)
        return super().call(inputs)


class Passive(ConfiguredLayer):
    """Base of layers without controls, whose outputs are `_act(inputs)`."""

    def call(self, inputs):
        return self._act(inputs)


class PlaneOutputs(FieldOutputs):
    """Gives a layer complex outputs in the shape of its inputs, a batch of planes."""

    def compute_output_shape(self, input_shape) -> tuple:
        return (input_shape[0], *plane_of(self, input_shape))

    def _fields(self, inputs) -> tf.Tensor:
        """Checks inputs, and returns them as complex fields."""
        self.compute_output_shape(inputs.shape)
        return as_complex(tf.convert_to_tensor(inputs), tf.as_dtype(self._output_dtype))


def plane_of(layer: keras.layers.Layer, shape) -> tuple[int, int]:
    """Returns (height, width) of the planes that a layer takes."""
    if len(shape) != 3 or None in shape[1:]:
        raise ValueError(
            f"The inputs of {type(layer).__name__} '{layer.name}' must be fields of "
            "shape (batch, height, width), such as `Encode` gives. "
            f"Received: shape {tuple(shape)}"
        )
    return tuple(shape[1:])


class Use(NamedTuple):
    """One use of a layer in a model of nodes."""

    layer: keras.Operation
    # The shape of its first input, with the batch.
    shape: tuple
    # The layers whose fields it takes; empty for digital inputs.
    sources: tuple

    @property
    def source(self) -> keras.layers.Layer | None:
        """The first of the sources, if there is one."""
        return next(iter(self.sources), None)


def uses_of(model: keras.Model) -> list[Use] | None:
    """Returns all uses of layers and operations, in the order in which they run.

    Returns `None` unless the model is built of nodes (functional, Sequential) or wraps
    such a model.
    """
    graph = _keras.functional(model)
    return None if graph is None else _follow(graph)[0]


def check_fields(model: keras.Model) -> None:
    """Checks that no complex field reaches a layer or a loss for real numbers.

    These are layers of Keras with weights, `Rescaling`, which casts to real numbers,
    losses of Keras, and losses to which Keras passes the real part only. Models of
    nodes (functional, Sequential) are followed from node to node; others pass.
    """
    graph = _keras.functional(model)
    if graph is None:
        return
    seen, outputs = _follow(graph)
    for use in seen:
        casts = isinstance(use.layer, keras.layers.Rescaling)
        real = casts or getattr(use.layer, "weights", ())
        if use.sources and _keras.of_keras(use.layer) and real:
            taking = f"{type(use.layer).__name__} '{use.layer.name}' behind it"
            raise _error(use.source, taking)
    sources = [s for s in outputs if s is not None]
    loss = getattr(model, "loss", None)
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if sources and (_keras.of_keras(loss) or _casts(loss)):
        taking = f"outputs of model '{model.name}', with a loss for real numbers"
        raise _error(sources[0], taking)


def detected(model: keras.Model, layer) -> bool:
    """Tells whether the fields of a layer go only to detectors of intensities.

    The result is `False` for a model that is not of nodes (functional, Sequential).
    """
    graph = _keras.functional(model)
    if graph is None:
        return False
    seen, outputs = _follow(graph)
    takers = [use.layer for use in seen if layer in use.sources]
    detected = all(isinstance(t, Photodetector | BalancedDetector) for t in takers)
    return bool(takers) and detected and layer not in outputs


def _follow(graph, given: Sequence = ()) -> tuple[list[Use], list]:
    """Returns all uses, and for each output the layer whose field it is, or `None`.

    `given` lists these layers for the inputs; by default, no input is a field.
    """
    seen: list[Use] = []
    fields = dict(zip(map(id, graph.inputs), given, strict=bool(given)))
    for node in _keras.nodes(graph):
        if node.is_input:
            continue
        operation, tensors = node.operation, node.output_tensors
        sources = [fields.get(id(t)) for t in node.input_tensors]
        source = next(filter(None, sources), None)
        inner = None
        if isinstance(operation, keras.Model):
            inner = _keras.functional(operation)
        if inner is not None and len(inner.inputs) == len(sources):
            uses, results = _follow(inner, sources)
            seen += uses
        else:
            taken = tuple(filter(None, sources))
            seen.append(Use(operation, node.input_tensors[0].shape, taken))
            if isinstance(operation, FieldOutputs):
                source = operation
            results = [source if "complex" in t.dtype else None for t in tensors]
        fields |= zip(map(id, tensors), results, strict=True)
    return seen, [fields.get(id(t)) for t in graph.outputs]


def _casts(loss) -> bool:
    """Tells whether Keras casts complex outputs to the real dtype of a loss."""
    if isinstance(loss, keras.losses.Loss):
        own = type(loss).__call__ is not keras.losses.Loss.__call__
        return not own and "complex" not in loss.dtype
    return callable(loss)


def _error(source, received: str) -> ValueError:
    planes = isinstance(source, PlaneOutputs)
    detector = "DetectorArray" if planes else "Photodetector"
    return ValueError(
        f"{type(source).__name__} '{source.name}' gives complex fields; put a "
        f"{detector} behind it. Received: {received}"
    )
