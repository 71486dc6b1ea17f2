"""Tensors of one float dtype, and checks on values that are known eagerly."""

import keras
import numpy as np
import tensorflow as tf

TensorLike = float | np.ndarray | tf.Tensor | tf.Variable | keras.Variable


def concrete(value):
    """The value as a NumPy array, or None where it is not known yet.

    Args:
        value: Python number, array-like, tensor or variable.

    Returns:
        A NumPy array, or None for tensors and variables of a graph.

    Raises:
        ValueError: If `value` is not an array of numbers.
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
        array = np.asarray(value)
    except ValueError:
        array = None
    if array is not None and array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array is None or array.dtype.kind not in "fiub":
        raise ValueError(f"Expected real numbers. Received: {value!r}")
    return array


def check(name, value, valid, expected):
    """Raises if a value known eagerly is not valid; graph tensors pass.

    Args:
        name: String. The argument's name, for the message.
        value: What was given.
        valid: Function from a NumPy array to a boolean array. Comparisons with
            NaN are false, so that NaN is refused by any comparison.
        expected: String. What is expected, such as `"positive"`.

    Raises:
        ValueError: If any element is not valid, or is not a real number.
    """
    try:
        array = concrete(value)
    except ValueError:
        raise ValueError(
            f"`{name}` must be {expected}. Received: {name}={value!r}"
        ) from None
    if array is None:
        return
    good = np.asarray(valid(array))
    if not np.all(good):
        raise ValueError(
            f"`{name}` must be {expected}. Received: {name}={_first(array, good)}"
        )


def check_positive(name, value):
    """Raises `ValueError` unless `value` is finite and above 0 (or symbolic)."""
    check(name, value, lambda v: np.isfinite(v) & (v > 0), "positive and finite")


def check_not_nan(name, value):
    """Raises `ValueError` if `value` is known and holds a NaN."""
    check(name, value, lambda v: ~np.isnan(v), "a number, not NaN")


def check_loss(name, value):
    """Raises `ValueError` unless `value` is finite and 0 or more (or symbolic)."""
    check(name, value, lambda v: np.isfinite(v) & (v >= 0), "finite and >= 0")


def check_fraction(name, value):
    """Raises `ValueError` unless `value` lies in [0, 1] (or is symbolic)."""
    check(name, value, lambda v: (v >= 0) & (v <= 1), "in [0, 1]")


def real_number(value) -> float:
    """Returns one real number as a float; NaN where `value` is none.

    NaN fails every comparison, so that a check of the range refuses it too.
    """
    if isinstance(value, (str, bytes, bool, np.bool_)):
        return float("nan")
    try:
        return float(value) if np.ndim(value) == 0 else float("nan")
    except (TypeError, ValueError):
        return float("nan")


def as_tensors(*values):
    """Converts values to tensors of one float dtype.

    The widest of the arrays' and tensors' dtypes is taken, and never less than
    float32, in which phases and detunings are kept. Python numbers and integer
    arrays adopt it. Without any float array, NumPy scalars decide, and after
    them `keras.config.floatx()`.

    Args:
        *values: Python numbers, array-likes, tensors or variables.

    Returns:
        A tuple of tensors, one per value, of dtype float32 or float64.

    Raises:
        ValueError: If a value is complex.

    Example:

    >>> a, b = as_tensors(np.ones(2, "float64"), 0.1)
    >>> b.dtype
    tf.float64
    """
    dtype = _common_dtype(values)
    return tuple(_to_tensor(value, dtype) for value in values)


def nan_below(value: tf.Tensor, bound: float) -> tf.Tensor:
    """The values that are above a bound, NaN in place of the others.

    For values that only a graph knows, which no error can refuse.
    """
    return tf.where(value > bound, value, tf.constant(float("nan"), value.dtype))


def as_complex(value, dtype: tf.DType) -> tf.Tensor:
    """Casts to complex64 or complex128.

    `tf.cast` from real to complex warns at each gradient.
    """
    if value.dtype.is_complex:
        return tf.cast(value, dtype)
    value = tf.cast(value, dtype.real_dtype)
    return tf.complex(value, tf.zeros_like(value))


def _common_dtype(values):
    names = [
        keras.backend.standardize_dtype(value.dtype)
        for value in values
        if hasattr(value, "dtype") and not isinstance(value, np.generic)
    ]
    scalars = [value.dtype.name for value in values if isinstance(value, np.generic)]
    if any("complex" in name for name in names + scalars):
        raise ValueError(f"Expected real numbers. Received dtypes: {names + scalars}")
    for group in (names, scalars, [keras.config.floatx()]):
        if "float64" in group:
            return "float64"
        if any("float" in name for name in group):
            return "float32"


def _to_tensor(value, dtype):
    if hasattr(value, "dtype") and not isinstance(value, (np.ndarray, np.generic)):
        return tf.cast(tf.convert_to_tensor(value), dtype)
    return tf.convert_to_tensor(value, dtype)


def _first(array, good):
    if array.ndim == 0:
        return f"{array[()]}"
    bad = array[~np.broadcast_to(good, array.shape)]
    return f"{bad[0]} ({bad.size} of {array.size} values)"
