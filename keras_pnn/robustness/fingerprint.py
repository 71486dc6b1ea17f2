"""Hashes of what figures depend on, the same in every process."""

import functools
import hashlib
import json
import types

import keras
import numpy as np

from keras_pnn import _keras


def digest(arrays) -> str:
    """Returns a hash of arrays, their dtypes and shapes; `None`s are left out."""
    found = hashlib.sha256()
    for array in arrays:
        if array is None:
            continue
        array = np.ascontiguousarray(array)
        found.update(str((array.dtype.str, array.shape)).encode())
        # Objects (strings) have no bytes of their own.
        found.update(
            array.tobytes() if array.dtype.kind != "O" else repr(array).encode()
        )
    return found.hexdigest()


def computation(model: keras.Model) -> str:
    """Returns what a compiled model computes, but for its weights, as text.

    Architecture, loss, weights of losses, and metrics with their settings. Layers
    are numbered in the model's order in place of their names, which differ between
    two models of one architecture; so are the model and what wraps it.
    """
    inner = model
    while isinstance(getattr(inner, "model", None), keras.Model):
        inner = inner.model
    layers = _keras.flat_layers(inner)
    architecture = [_described(inner), [_described(la) for la in layers]]
    if not type(inner).call.__module__.startswith("keras."):
        # What such a model does with its layers is in its code alone.
        architecture.append(_plain(type(inner).call))
    names = [inner.name, *(la.name for la in layers), *_node_names(architecture)]
    numbers = {name: f"#{i}" for i, name in enumerate(dict.fromkeys(names))}
    compiled = model._compile_config.config
    parts = "loss", "loss_weights", "metrics", "weighted_metrics"
    asked = [_plain(compiled.get(part)) for part in parts]
    return json.dumps([_renamed(architecture, numbers), asked], sort_keys=True)


def _node_names(value) -> list[str]:
    """The names of a configuration's models and nodes, operations included."""
    if isinstance(value, list):
        return [name for v in value for name in _node_names(v)]
    if not isinstance(value, dict):
        return []
    own = [value.get("name")] if {"layers", "inbound_nodes"} & value.keys() else []
    return [n for n in own if n] + [n for v in value.values() for n in _node_names(v)]


def _described(part):
    """Class and settings of a layer, a loss or a metric."""
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    try:
        return [name, _plain(part.get_config())]
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return [name]


def _plain(value):
    """A value of a configuration in JSON's types, with no address in memory."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k != "shared_object_id"}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | keras.Variable):
        return digest([value])
    if isinstance(value, functools.partial):
        return [_plain(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, types.MethodType):
        return [_plain(value.__func__), _described(value.__self__)]
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return _described(value)


def _function(function: types.FunctionType):
    """A function's code, defaults and what it closes over."""
    cells = [_cell(cell) for cell in function.__closure__ or ()]
    return [
        function.__qualname__,
        _code(function.__code__),
        _plain(function.__defaults__),
        _plain(function.__kwdefaults__),
        cells,
    ]


def _cell(cell):
    # An object that closes over itself would never end.
    value = cell.cell_contents
    plain = isinstance(value, bool | int | float | str | np.ndarray | np.generic)
    return _plain(value) if plain else type(value).__qualname__


def _code(code: types.CodeType):
    inner = [
        _code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), inner]


def _renamed(value, numbers: dict[str, str]):
    """The value with every text that is a layer's name replaced by its number."""
    if isinstance(value, str):
        return numbers.get(value, value)
    if isinstance(value, list):
        return [_renamed(v, numbers) for v in value]
    if isinstance(value, dict):
        return {
            numbers.get(k, k): _renamed(v, numbers) for k, v in sorted(value.items())
        }
    return value
