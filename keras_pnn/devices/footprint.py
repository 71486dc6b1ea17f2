"""Which outputs of a model differ between devices, and what they take in memory."""

import dataclasses
import math

import keras
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.layers.mrr import MRRConv2D


@dataclasses.dataclass
class Footprint:
    """Bytes of the layers' outputs, and which layers they come from.

    Args:
        shared: bytes for each sample that all devices share.
        stacked: bytes for each sample and device.
        weights: bytes for each device, from what it sets to matrices and masks.
        layers: ids of the layers whose outputs differ between devices; `None` where
            that cannot be found out, and everything counts as stacked.
    """

    shared: float = 0.0
    stacked: float = 0.0
    weights: float = 0.0
    layers: set[int] | None = dataclasses.field(default_factory=set)

    def differs(self, layer: keras.layers.Layer) -> bool:
        """Whether the layer's outputs differ between devices, as far as is known."""
        return self.layers is None or id(layer) in self.layers

    def devices(self, batch_size: int, limit: float) -> int:
        """Returns how many devices fit a limit in bytes, at least one."""
        # A tenth for what passes between the outputs.
        left = 0.9 * limit - min(_COMPILING, limit / 2) - batch_size * self.shared
        each = batch_size * self.stacked + self.weights
        return max(1, int(left / max(each, 1.0)))


def footprint(model: keras.Model, variables) -> Footprint:
    """Returns what devices that set `variables` share, and what not.

    Models of nodes (functional, Sequential) are followed from node to node, also
    where they are inside one another or in a wrapper whose attribute `model` is the
    model it calls. Elsewhere every layer counts as different.

    Args:
        model: a built model.
        variables: the variables that devices set.
    """
    varied = {id(v) for v in variables}
    found = Footprint(weights=_WEIGHTS * _size_of_varied(model, varied))
    functional = _functional(model)
    inside = {id(v) for v in functional.variables} if functional else set()
    if functional is not None and varied <= inside:
        _walk(functional, varied, [False] * len(functional.inputs), found)
        return found
    found.layers = None
    for layer in _keras.flat_layers(model):
        for node in layer._inbound_nodes:
            found.stacked += _bytes(layer, node, True)[1]
    return found


# Copies of all that a layer holds, stacked, once a device sets a part of it: entries
# of cells, tiles and matrices, or warped masks. Measured on all kinds of layers.
_WEIGHTS = 6

# What compiling takes, measured; never more than half of what there is, since a graph
# of a small model takes little.
_COMPILING = 0.1 * 2**30


def _size_of_varied(model, varied: set[int]) -> int:
    """Bytes of the variables of all layers that have one which devices set."""
    size = 0
    for layer in _keras.flat_layers(model):
        own = layer._trainable_variables + layer._non_trainable_variables
        if any(id(v) in varied for v in own):
            size += sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in own)
    return size


def _functional(model):
    """The model of nodes that a model is, or wraps; `None` if there is none."""
    while True:
        if hasattr(model, "_functional"):
            model = model._functional
        if getattr(model, "_nodes_by_depth", None) is not None:
            # A subclass with a `call` of its own may do anything with its layers.
            own = type(model).call.__module__.startswith("keras.")
            return model if own else None
        model = getattr(model, "model", None)
        if not isinstance(model, keras.Model):
            return None


def _walk(functional, varied: set[int], flags: list[bool], found: Footprint):
    """Adds a model's nodes to `found`; returns which outputs differ."""
    differs = {id(t): f for t, f in zip(functional.inputs, flags, strict=True)}
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            operation, tensors = node.operation, node.output_tensors
            given = [differs.get(id(t), False) for t in node.input_tensors]
            inner = None
            if isinstance(operation, keras.Model):
                inner = _functional(operation)
            if inner is not None and len(inner.inputs) == len(given):
                results = _walk(inner, varied, given, found)
                if any(results):
                    found.layers.add(id(operation))
            else:
                own = getattr(operation, "variables", ())
                result = any(given) or any(id(v) in varied for v in own)
                results = [result] * len(tensors)
                shared, stacked = _bytes(operation, node, any(given))
                found.shared += shared if result else shared + stacked
                found.stacked += stacked if result else 0
                if result and isinstance(operation, keras.layers.Layer):
                    found.layers |= _ids(operation)
            differs.update(zip(map(id, tensors), results, strict=True))
    return [differs[id(t)] for t in functional.outputs]


def _ids(layer) -> set[int]:
    """The ids of a layer and of the layers inside."""
    return {id(layer)}.union(*map(_ids, layer._layers))


def _bytes(operation, node, inputs_differ: bool) -> tuple[float, float]:
    """(bytes of one sample that devices share, bytes that differ if the node does)."""
    size = 0
    for output in node.output_tensors:
        values = math.prod(n or 1 for n in output.shape[1:])
        size += values * max(1, tf.as_dtype(output.dtype).size)
    # A layer of layers keeps an output of each.
    parts = len(_ids(operation)) if isinstance(operation, keras.layers.Layer) else 1
    size *= max(1, parts - 1)
    patches = 0
    if isinstance(operation, MRRConv2D) and operation.built:
        patches = size // operation.filters * operation._fan_in
    return (0, size + patches) if inputs_differ else (patches, size)
