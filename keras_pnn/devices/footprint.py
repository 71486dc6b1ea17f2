"""Estimate which outputs differ between devices, and the memory that they take."""

import dataclasses
import math

import keras
import tensorflow as tf

from keras_pnn import _keras
from keras_pnn.layers.mrr import MRRConv2D

# Memory of a layer that a device sets, in copies of the layer's variables: entries of
# cells, tiles and matrices, or warped masks. Measured on all kinds of layers.
_WEIGHTS = 6

# Measured memory for compiling; at most half of the limit counts, since the graph of a
# small model takes little.
_COMPILING = 0.1 * 2**30


@dataclasses.dataclass
class Footprint:
    """Bytes of the layers' outputs, and the layers that differ between devices."""

    # Per sample, for all devices together; per sample and device; and per device, for
    # what it sets and the matrices and masks made of it.
    shared: float = 0.0
    stacked: float = 0.0
    weights: float = 0.0
    # Ids of the layers whose outputs differ between devices; `None` if that is unknown,
    # and everything counts as stacked.
    layers: set[int] | None = dataclasses.field(default_factory=set)

    def differs(self, layer: keras.layers.Layer) -> bool:
        """Tells whether the layer's outputs differ between devices; true if unknown."""
        return self.layers is None or id(layer) in self.layers

    def devices(self, batch_size: int, limit: float) -> int:
        """Returns how many devices fit a limit in bytes, at least one."""
        # A tenth is left for intermediate values.
        left = 0.9 * limit - min(_COMPILING, limit / 2) - batch_size * self.shared
        each = batch_size * self.stacked + self.weights
        return max(1, int(left / max(each, 1.0)))


def footprint(model: keras.Model, variables) -> Footprint:
    """Returns the memory shared by devices that set `variables`, and that of each.

    Graphs of nodes (functional, Sequential) are followed from node to node, also if
    they are nested or in a wrapper that calls its attribute `model`. In other models
    every layer counts as different.
    """
    varied, layers = {id(v) for v in variables}, _keras.flat_layers(model)
    found = Footprint()
    for layer in layers:
        own = _keras.own_variables(layer)
        if any(id(v) in varied for v in own):
            size = sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in own)
            found.weights += _WEIGHTS * size
    graph = _keras.functional(model)
    inside = {id(v) for v in graph.variables} if graph else set()
    if graph is not None and varied <= inside:
        _walk(graph, varied, [False] * len(graph.inputs), found)
        return found
    found.layers = None
    nodes = [(layer, node) for layer in layers for node in _keras.calls(layer)]
    found.stacked = sum(_bytes(layer, node, True)[1] for layer, node in nodes)
    return found


def _walk(graph, varied: set[int], flags: list[bool], found: Footprint):
    """Adds a graph's nodes to `found`; returns which outputs differ."""
    differs = {id(t): f for t, f in zip(graph.inputs, flags, strict=True)}
    for node in _keras.nodes(graph):
        if node.is_input:
            continue
        operation, tensors = node.operation, node.output_tensors
        given = [differs.get(id(t), False) for t in node.input_tensors]
        is_model = isinstance(operation, keras.Model)
        inner = _keras.functional(operation) if is_model else None
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
                found.layers |= {id(part) for part in _keras.parts(operation)}
        differs.update(zip(map(id, tensors), results, strict=True))
    return [differs[id(t)] for t in graph.outputs]


def _bytes(operation, node, inputs_differ: bool) -> tuple[float, float]:
    """(bytes of one sample that devices share, bytes that differ if the node does)."""
    size = 0
    for output in node.output_tensors:
        values = math.prod(n or 1 for n in output.shape[1:])
        size += values * max(1, tf.as_dtype(output.dtype).size)
    # A layer of layers keeps an output of each.
    if isinstance(operation, keras.layers.Layer):
        size *= max(1, len(_keras.parts(operation)) - 1)
    patches = 0
    if isinstance(operation, MRRConv2D) and operation.built:
        fan_in = math.prod(operation.controls["control"].shape[:-1])
        patches = size // operation.filters * fan_in
    return (0, size + patches) if inputs_differ else (patches, size)
