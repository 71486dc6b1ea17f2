"""Check arguments: one function per kind of value, one wording for every message.

Each function returns the checked value and raises a `ValueError` that reads
"Argument `rho` must be a number ≥ 0. Received: -1".
"""

import math
import numbers
import types
from collections.abc import Callable, Collection, Iterator

import keras
import numpy as np
import tensorflow as tf


def error(name: str, expected: str, received) -> ValueError:
    """Returns the error for an argument that is not `expected`, such as "a number ≥ 0".

    `received` is the given value, or a string that describes it.
    """
    return ValueError(f"Argument `{name}` must be {expected}. Received: {received}")


def short(value) -> str:
    """Returns the `repr` of a value, cut to one short line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def integer(name: str, value, low: int | None = None, high: int | None = None) -> int:
    """Returns an integer within [low, high]; `None` stands for no bound."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and _within(value, low, None, high, None)):
        expected = "an integer" + _bounds(low, None, high, None)
        raise error(name, expected, short(value))
    return int(value)


def real(
    name: str,
    value,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Returns a finite number, or an array or eager tensor without axes, as a float.

    The bounds `low` and `high` are inclusive; `above` and `below` are exclusive.
    """
    number = as_real(value)
    if not (math.isfinite(number) and _within(number, low, above, high, below)):
        expected = "a finite number" + _bounds(low, above, high, below)
        raise error(name, expected, short(value))
    return number


def as_real(value) -> float:
    """Returns a real number as a float, and NaN for anything else."""
    if isinstance(value, (str, bytes, bool, np.bool_)):
        return math.nan
    try:
        return float(value) if np.ndim(value) == 0 else math.nan
    except (TypeError, ValueError, OverflowError):
        return math.nan


def boolean(name: str, value) -> bool:
    """Returns `True` or `False`; numbers are refused."""
    if not isinstance(value, (bool, np.bool_)):
        raise error(name, "True or False", short(value))
    return bool(value)


def pair(name: str, value, low: int | None = None) -> tuple[int, int]:
    """Returns two integers from two integers, or from one for both."""
    values = (value, value) if isinstance(value, numbers.Integral) else value
    try:
        first, second = values
        return integer(name, first, low), integer(name, second, low)
    except (TypeError, ValueError):
        expected = f"an integer{_bounds(low, None, None, None)} or a pair of them"
        raise error(name, expected, short(value)) from None


def saved(owner, name: str, value, instead: str = ""):
    """Returns an argument of a layer or model as `get_config` writes it.

    A file holds no code, so a callable must have a name or a configuration. `instead`
    is an alternative to a function, for the message.
    """
    for part in keras.tree.flatten(value):
        if callable(part) and not _has_name(part) and not _has_config(part):
            raise _unsaved(owner, name, part, instead)
    try:
        config = keras.saving.serialize_keras_object(value)
    except (NotImplementedError, TypeError) as problem:
        raise _unsaved(owner, name, value, instead) from problem
    # A part may hold a function that Keras writes as code.
    texts = [part for part in keras.tree.flatten(config) if isinstance(part, str)]
    if "__lambda__" in texts:
        raise _unsaved(owner, name, value, instead)
    return config


def _has_name(part) -> bool:
    if not isinstance(part, types.FunctionType) or part.__name__ == "<lambda>":
        return False
    if part.__module__.partition(".")[0] in ("keras", "tensorflow"):
        return True
    try:
        config = keras.saving.serialize_keras_object(part)
        return keras.saving.deserialize_keras_object(config) is part
    except (TypeError, ValueError):
        # Not registered: `load_model` finds it in `custom_objects`.
        return True


def _has_config(part) -> bool:
    kind = type(part)
    return hasattr(kind, "get_config") and hasattr(kind, "from_config")


def _unsaved(owner, name: str, value, instead: str) -> ValueError:
    return ValueError(
        f"{type(owner).__name__} '{owner.name}' cannot be saved with this `{name}`: "
        f"{instead}give a function defined by `def` and decorated with "
        "`@keras.saving.register_keras_serializable()`, or an object with `get_config` "
        f"and `from_config`. Received: {name}={short(value)}"
    )


def compiled(name: str, model) -> None:
    """Checks that a model is compiled, as `evaluate` requires."""
    if not getattr(model, "compiled", False):
        received = f"model '{getattr(model, 'name', model)}', not compiled"
        raise error(name, "compiled, as for `evaluate`", received)


def optional(check: Callable, name: str, value, *args, **kwargs):
    """Returns `None` for `None`, and the result of a check for any other value."""
    return None if value is None else check(name, value, *args, **kwargs)


def choice(name: str, value, options: Collection):
    """Returns a value that is one of the options."""
    if not isinstance(value, (str, int, type(None))) or value not in options:
        expected = f"one of {', '.join(map(repr, options))}"
        raise error(name, expected, short(value))
    return value


def array(
    name: str,
    value,
    shape: tuple[int, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    broadcast: bool = True,
) -> np.ndarray:
    """Returns finite real numbers as a float64 array.

    Args:
        shape: the shape that the array must have. `None` for any shape.
        low, above: as in `real`.
        broadcast: whether a number stands for an array of the shape.
    """
    expected = "finite numbers" + _bounds(low, above, None, None)
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "iufV":
            raise ValueError
        found = found.astype("float64")
    except (TypeError, ValueError, NotImplementedError):
        raise error(name, expected, short(value)) from None
    shape = None if shape is None else tuple(shape)
    if shape is not None and found.shape != shape and (found.ndim or not broadcast):
        kind = f"{'a number or ' if broadcast else ''}an array of shape {shape}"
        raise error(name, kind, f"shape {found.shape}")
    good = np.isfinite(found)
    if low is not None:
        good &= found >= low
    if above is not None:
        good &= found > above
    if not good.all():
        raise error(name, expected, _first_bad(found, good))
    return found if shape is None else np.broadcast_to(found, shape)


def tensor(
    name: str, value, valid: Callable[[np.ndarray], np.ndarray], expected: str
) -> None:
    """Checks real numbers whose value is known; tensors of a graph pass.

    `valid` maps an array to booleans. A comparison with NaN is false, so that any
    comparison refuses NaN.
    """
    try:
        known = concrete(value)
    except ValueError:
        raise error(name, expected, short(value)) from None
    if known is None:
        return
    good = np.asarray(valid(known))
    if not good.all():
        raise error(name, expected, _first_bad(known, good))


def positive(name: str, value) -> None:
    """Checks that known values are finite and above 0."""
    tensor(name, value, lambda v: np.isfinite(v) & (v > 0), "finite and > 0")


def not_negative(name: str, value) -> None:
    """Checks that known values are finite and 0 or more."""
    tensor(name, value, lambda v: np.isfinite(v) & (v >= 0), "finite and ≥ 0")


def fraction(name: str, value) -> None:
    """Checks that known values lie in [0, 1]."""
    tensor(name, value, lambda v: (v >= 0) & (v <= 1), "in [0, 1]")


def not_nan(name: str, value) -> None:
    """Checks that no known value is NaN."""
    tensor(name, value, lambda v: ~np.isnan(v), "a number, not NaN")


def concrete(value) -> np.ndarray | None:
    """Returns a number, array-like, tensor or variable as a NumPy array.

    `None` stands for a value that is not known yet. Raises a `ValueError` for anything
    but real numbers.
    """
    if isinstance(value, keras.KerasTensor):
        return None
    if isinstance(value, keras.Variable):
        return concrete(value.value)
    if isinstance(value, tf.Variable):
        return value.numpy() if tf.executing_eagerly() else None
    if tf.is_tensor(value):
        return None if tf.is_symbolic_tensor(value) else value.numpy()
    if isinstance(value, (list, tuple)):
        parts = [concrete(part) for part in value]
        if any(part is None for part in parts):
            return None
        value = parts
    try:
        found = np.asarray(value)
    except ValueError:
        found = np.empty(0, object)
    if found.dtype.name == "bfloat16":
        return found.astype(np.float32)
    if found.dtype.kind not in "fiub":
        raise ValueError(f"Expected real numbers. Received: {value!r}")
    return found


def data(x, y=None, sample_weight=None, finite_targets: bool = True) -> tuple:
    """Returns a data set as structures of NumPy arrays of one length.

    Each is an array or a list or dictionary of arrays, not a list of numbers; or `x` is
    a data set, which is read once. There must be inputs, and no NaN or infinity;
    `finite_targets=False` allows NaN in targets, for losses that ignore it.
    """
    if is_data_set(x):
        x, y, sample_weight = _joined(data_set_batches(x, y, sample_weight)())
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    parts = {name: samples(name, part) for name, part in parts.items()}
    if all(a is None for a in keras.tree.flatten(parts["x"])):
        raise error("x", "at least one array", short(x))
    leaves = keras.tree.flatten(list(parts.values()))
    lengths = {len(a) for a in leaves if a is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "Arguments `x`, `y` and `sample_weight` must have one length, at least 1. "
            f"Received: lengths {sorted(lengths)}"
        )
    for name, part in parts.items():
        if name != "y" or finite_targets:
            finite(name, part)
    return tuple(parts.values())


def sample_count(x) -> int:
    """Returns the number of samples in an array or a structure of arrays."""
    return len(next(a for a in keras.tree.flatten(x) if a is not None))


def is_data_set(x) -> bool:
    """Tells whether `x` is a data set whose batches hold inputs and targets."""
    return isinstance(x, tf.data.Dataset | keras.utils.PyDataset)


def data_set_batches(x, y=None, sample_weight=None) -> Callable[[], Iterator[tuple]]:
    """Returns a function that yields (x, y, sample_weight) of a data set's batches."""
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            expected = "None when `x` is a data set, whose batches hold it"
            raise error(name, expected, type(value).__name__)
    python = isinstance(x, keras.utils.PyDataset)
    if python:
        infinite = x.num_batches is None
    else:
        infinite = x.cardinality() == tf.data.INFINITE_CARDINALITY
    if infinite:
        raise error("x", "finite: take some batches, as in `x.take(10)`", x)

    def iterate():
        for batch in (x[index] for index in range(x.num_batches)) if python else x:
            yield keras.utils.unpack_x_y_sample_weight(batch)

    return iterate


def _joined(batches: Iterator[tuple]) -> tuple:
    """Returns the batches of a data set as arrays."""
    expected = (
        "a data set of batches, such as `data.batch(100)`, whose arrays differ in the "
        "first axis alone, the samples"
    )

    def join(*parts):
        if all(part is None for part in parts):
            return None
        try:
            return np.concatenate([np.asarray(part) for part in parts])
        except (TypeError, ValueError):
            received = sorted({tuple(getattr(p, "shape", ())) for p in parts})
            raise error("x", expected, f"parts of shapes {received[:3]}") from None

    every = list(batches)
    if not every:
        raise error("x", "a data set with at least one batch", "none")
    try:
        return keras.tree.map_structure(join, *every)
    except (TypeError, ValueError) as problem:
        if str(problem).startswith("Argument"):
            raise
        raise error("x", expected, "batches of other structures") from problem


def samples(name: str, value):
    """Returns an array, or a structure of arrays, as NumPy arrays; `None` stays."""

    def one(given):
        # A list of numbers arrives here number by number; a data set has no shape.
        if given is not None and not len(getattr(given, "shape", ())):
            expected = (
                "an array, or a list or dictionary of arrays, with the samples along "
                "the first axis (`np.asarray` makes one of a list of numbers)"
            )
            raise error(name, expected, short(given))
        return None if given is None else np.asarray(given)

    return keras.tree.map_structure(one, value)


def inputs(name: str, value) -> None:
    """Checks that known inputs hold a sample, and neither NaN nor infinity.

    Data sets, generators and tensors of a graph pass, since their values are unknown.
    """
    shapes = [tuple(a.shape) for a in keras.tree.flatten(value) if _known(a)]
    if any(shape and shape[0] == 0 for shape in shapes):
        raise ValueError(
            f"Argument `{name}` must hold at least one sample. "
            f"Received: shapes {shapes}"
        )
    finite(name, value)


def finite(name: str, value) -> None:
    """Checks that known arrays and tensors hold neither NaN nor infinity."""
    for leaf in filter(_known, keras.tree.flatten(value)):
        if not _all_finite(leaf):
            raise error(name, "finite", "NaN or infinity")


def _known(leaf) -> bool:
    eager = isinstance(leaf, tf.Tensor) and not tf.is_symbolic_tensor(leaf)
    return isinstance(leaf, np.ndarray) or eager


def _all_finite(leaf) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind not in "fc" or bool(np.isfinite(leaf).all())
    if leaf.dtype.is_complex:
        leaf = tf.abs(leaf)
    return not leaf.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(leaf)))


def _within(value, low, above, high, below) -> bool:
    return (
        (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
    )


def _bounds(low, above, high, below) -> str:
    """Returns the bounds as text: " ≥ 0", " > 0 and < 1", " in [2, 24]"."""
    if low is not None and high is not None:
        return f" in [{low:g}, {high:g}]"
    signs = {"≥": low, ">": above, "≤": high, "<": below}
    parts = [f"{sign} {bound:g}" for sign, bound in signs.items() if bound is not None]
    return " " + " and ".join(parts) if parts else ""


def _first_bad(found: np.ndarray, good: np.ndarray) -> str:
    if found.ndim == 0:
        return f"{found[()]}"
    bad = found[~np.broadcast_to(good, found.shape)]
    return f"{bad[0]} ({bad.size} of {found.size} values)"
