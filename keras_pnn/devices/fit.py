"""Explain in one sentence why data do not fit a model."""

import keras
import numpy as np

from keras_pnn import _checks, _keras

_SPARSE = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_DENSE = (keras.losses.CategoricalCrossentropy, keras.losses.categorical_crossentropy)


def misfit(model: keras.Model, x, y) -> ValueError | None:
    """Returns an error that explains why a model fails on data.

    `None` if the reason is unknown, as for models that are not a graph of layers, and
    losses other than cross-entropies. `x` and `y` are structures of NumPy arrays.
    """
    graph = _keras.functional(model)
    pairs = [] if graph is None else _pairs(x, graph.inputs)
    for name, given, wanted in pairs:
        if _is_text(given) and wanted.dtype != "string":
            return _checks.error(name, "numbers", f"dtype {given.dtype}")
        if not _same(given.shape[1:], wanted.shape[1:]):
            shape = _samples(wanted.shape[1:])
            expected = f"of shape {shape}, as the input of model '{model.name}'"
            return _checks.error(name, expected, f"shape {given.shape}")
    for part in keras.tree.flatten(y):
        if part is not None and _is_text(part):
            expected = "numbers, such as the classes 0, 1, 2, …"
            return _checks.error("y", expected, f"dtype {part.dtype}")
    if graph is None or len(graph.outputs) != 1 or not hasattr(y, "shape"):
        return None
    return _wrong_labels(model, y, tuple(graph.outputs[0].shape[1:]))


def _wrong_labels(model, y: np.ndarray, output: tuple) -> ValueError | None:
    loss = model.loss
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if _is_one(loss, _SPARSE) and not _same(y.shape[1:], output[:-1]):
        expected = (
            f"class numbers of shape {_samples(output[:-1])} for the sparse "
            "cross-entropy; `y.argmax(-1)` makes them of one-hot labels"
        )
    elif _is_one(loss, _DENSE) and not _same(y.shape[1:], output):
        expected = (
            f"one-hot labels of shape {_samples(output)} for the cross-entropy; class "
            "numbers need 'sparse_categorical_crossentropy'"
        )
    else:
        return None
    return _checks.error("y", expected, f"shape {y.shape}")


def _is_one(loss, kinds: tuple) -> bool:
    return isinstance(loss, kinds[0]) or loss is kinds[1]


def _pairs(x, inputs: list) -> list[tuple]:
    """Returns (name, array, symbolic input) of the arrays whose input is known."""
    if isinstance(x, dict):
        return [(f"x[{t.name!r}]", x[t.name], t) for t in inputs if t.name in x]
    arrays = keras.tree.flatten(x)
    if len(arrays) != len(inputs):
        return []
    names = ["x"] if len(arrays) == 1 else [f"x[{i}]" for i in range(len(arrays))]
    return list(zip(names, arrays, inputs, strict=True))


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind not in "biufcV"


def _same(found: tuple, expected: tuple) -> bool:
    """Compares shapes; Keras adds or drops a last axis of length 1 itself."""
    if len(found) == len(expected) + 1 and found[-1] == 1:
        found = found[:-1]
    elif len(expected) == len(found) + 1 and expected[-1] in (1, None):
        expected = expected[:-1]
    return len(found) == len(expected) and all(
        wanted in (None, n) for n, wanted in zip(found, expected, strict=True)
    )


def _samples(shape: tuple) -> str:
    names = ["samples", *("any" if n is None else str(n) for n in shape)]
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"
