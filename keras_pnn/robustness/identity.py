"""Identify models and data of a study, in the same way in every process."""

import functools
import inspect
import json
import types
from collections.abc import Iterator

import keras
import numpy as np

from keras_pnn import _files, _keras

# Keys of Keras' configurations that hold names of layers.
_NAMES = ("name", "keras_history", "input_layers", "output_layers")


def data_digest(*parts) -> str:
    """Returns a digest of arrays and structures of arrays; `None`s are left out."""
    arrays = [np.asarray(a) for a in keras.tree.flatten(parts) if a is not None]
    # The bytes of an object array (strings) are only addresses.
    arrays = [repr(a.tolist()) if a.dtype.kind == "O" else a for a in arrays]
    return _files.digest(*arrays)


def described(model: keras.Model) -> str:
    """Describes as text what a compiled model computes, apart from its weights.

    The text holds the configurations of model and layers, the loss, loss weights and
    metrics. Layers are numbered, since automatic names differ between two models of one
    architecture. A function is described only by its name.
    """
    inner = model
    while isinstance(getattr(inner, "model", None), keras.Model):
        inner = inner.model
    configs = [_plain(part) for part in (inner, *_keras.flat_layers(inner))]
    names = [part.name for part in _keras.parts(inner)] + list(_node_names(configs))
    numbers = {name: f"#{i}" for i, name in enumerate(dict.fromkeys(names))}
    text = json.dumps(_numbered(configs, numbers), sort_keys=True)
    asked = _keras.compile_arguments(model)
    parts = ("loss", "loss_weights", "metrics", "weighted_metrics")
    return text + json.dumps([_plain(asked.get(part)) for part in parts])


def _node_names(config) -> Iterator[str]:
    """Yields the names of a configuration's nodes, operations included."""
    if isinstance(config, list):
        for part in config:
            yield from _node_names(part)
    if isinstance(config, dict):
        if "inbound_nodes" in config:
            yield config["name"]
        yield from _node_names(list(config.values()))


def _numbered(config, numbers: dict[str, str], named: bool = False):
    """Returns a configuration with numbers in place of layer names.

    Only values under `_NAMES` are replaced: a layer may be named like its activation.
    """
    if isinstance(config, dict):
        return {
            key: _numbered(value, numbers, named or key in _NAMES)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [_numbered(part, numbers, named) for part in config]
    return numbers.get(config, config) if named else config


def _plain(value):
    """Returns a configuration in JSON's types, without addresses and byte code."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            return None
        return {str(k): _plain(v) for k, v in value.items() if k != "shared_object_id"}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | keras.Variable):
        return data_digest(value)
    if isinstance(value, functools.partial):
        return [_plain(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, type | types.FunctionType | types.MethodType):
        return f"{value.__module__}.{value.__qualname__}"
    name = _plain(type(value))
    try:
        return [name, _plain(value.get_config())]
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return [name, _plain(_arguments(value))]


def _arguments(value) -> dict:
    """Returns the attributes of a layer that are named like its arguments.

    They replace the configuration of a layer that has none or cannot be saved.
    """
    if not isinstance(value, keras.layers.Layer):
        return {}
    kinds = [kind.__init__ for kind in type(value).__mro__]
    names = {name for init in kinds for name in inspect.signature(init).parameters}
    names = sorted(names | {"dtype_policy"})
    return {n: getattr(value, n) for n in names if hasattr(value, n)}
