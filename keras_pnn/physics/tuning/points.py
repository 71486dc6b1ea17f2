"""The points of a measured curve: reading a file, and checking."""

import csv
import re

import numpy as np

from keras_pnn.physics._tensors import check, concrete

LEAST_POINTS = 4


def argument_place(name, i):
    return f"`{name}[{i}]`" if i is not None else f"`{name}`"


def checked_points(control, weight, place):
    """The points as float64 arrays with rising controls.

    `place(name, i)` says where element i came from, for messages.
    """
    control, weight = _as_floats("control", control), _as_floats("weight", weight)
    if control.ndim != 1 or control.shape != weight.shape:
        raise ValueError(
            "`control` and `weight` must be one-dimensional and of one length. "
            f"Received: control.shape={control.shape}, weight.shape={weight.shape}"
        )
    for name, array in (("control", control), ("weight", weight)):
        for i in np.flatnonzero(~np.isfinite(array))[:1]:
            raise ValueError(f"{place(name, i)} must be finite. Received: {array[i]}")
    if len(control) < LEAST_POINTS:
        where = place("control", -1 if len(control) else None)
        raise ValueError(
            f"{where} must have at least {LEAST_POINTS} points. "
            f"Received: {len(control)} points"
        )
    for i in np.flatnonzero(control < 0)[:1]:
        raise ValueError(
            f"{place('control', i)} must not be negative: give shifts from the "
            f"ring's resting point. Received: {control[i]}"
        )
    steps = np.diff(control) * (1 if control[-1] >= control[0] else -1)
    for i in np.flatnonzero(steps <= 0)[:1]:
        raise ValueError(
            f"{place('control', i + 1)} must be strictly monotonic, without "
            f"duplicates. Received: {control[i + 1]} after {control[i]}"
        )
    if weight.min() == weight.max():
        raise ValueError(
            f"{place('weight', 0)} must not be constant. "
            f"Received: {weight[0]} at all points"
        )
    rising = slice(None) if control[-1] >= control[0] else slice(None, None, -1)
    return control[rising].copy(), weight[rising].copy()


def _as_floats(name, values):
    check(name, values, np.ones_like, "a sequence of real numbers")
    array = concrete(values)
    if array is None:
        raise ValueError(
            f"`{name}` must be known eagerly. Received: a tensor of a graph"
        )
    return np.asarray(array, np.float64)


def read_csv(path):
    """The unit, the line numbers, and the points as an array of two columns."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} must be a CSV file in UTF-8. Received: {error}"
        ) from None
    if not rows:
        raise ValueError(
            f"{path} must have a header, such as 'current_mA,weight', and at least "
            f"{LEAST_POINTS} lines. Received: an empty file"
        )
    unit = _unit_of_header(path, *rows[0])
    points = [_read_point(path, number, row) for number, row in rows[1:]]
    numbers = [number for number, _ in rows[1:]]
    return unit, numbers, np.array(points, np.float64).reshape(-1, 2)


def _unit_of_header(path, number, row):
    match = re.search(r"[_ (\[](mA|nm)[)\]]?$", row[0].strip())
    if len(row) != 2 or match is None or row[1].strip().lower() != "weight":
        raise ValueError(
            f"{path}, line {number}: the header must name the control with its "
            "unit, mA or nm, and the weight, such as 'current_mA,weight' or "
            f"'detuning_nm,weight'. Received: {','.join(row)!r}"
        )
    return match[1]


def _read_point(path, number, row):
    try:
        first, second = row
        return float(first), float(second)
    except ValueError:
        raise ValueError(
            f"{path}, line {number}: expected two numbers, the control and the "
            f"weight. Received: {','.join(row)!r}"
        ) from None
