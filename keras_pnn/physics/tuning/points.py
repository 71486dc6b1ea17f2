"""Read the points of a measured tuning curve from a CSV file, and check them."""

import csv
import math
import re

import numpy as np

from keras_pnn import _checks

LEAST_POINTS = 4


def checked_points(control, weight, place=lambda name, i: f"`{name}[{i}]`"):
    """Returns the points as float64 arrays with increasing controls.

    Args:
        control: Sequence of floats, increasing or decreasing.
        weight: Sequence of as many floats.
        place: Function from (name, index) to the words for a point in a message.

    Raises:
        ValueError: If lengths differ, there are fewer than 4 points, a number is not
            finite, a control is negative, the controls are not strictly monotonic, or
            all weights are equal.
    """
    control = _checks.array("control", control)
    weight = _checks.array("weight", weight)
    if control.ndim != 1 or control.shape != weight.shape:
        raise ValueError(
            "Arguments `control` and `weight` must be one-dimensional and of one "
            f"length. Received: shapes {control.shape} and {weight.shape}"
        )
    if len(control) < LEAST_POINTS:
        raise ValueError(
            f"Arguments `control` and `weight` must have at least {LEAST_POINTS} "
            f"points. Received: {len(control)} points"
        )
    falling = control[-1] < control[0]
    steps = np.diff(control) * (-1 if falling else 1)
    for bad, expected in (
        (control < 0, "≥ 0: give shifts from the ring's resting point"),
        (np.append(False, steps <= 0), "strictly monotonic, without duplicates"),
    ):
        for i in np.flatnonzero(bad)[:1]:
            raise ValueError(
                f"{place('control', i)} must be {expected}. Received: {control[i]}"
            )
    if weight.min() == weight.max():
        raise ValueError(
            f"{place('weight', 0)} must not be constant. "
            f"Received: {weight[0]} at all points"
        )
    return (control[::-1].copy(), weight[::-1].copy()) if falling else (control, weight)


def read_csv(path):
    """Reads a tuning curve: unit, controls, weights, and the line of each point."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} must be a CSV file in UTF-8. Received: {error}"
        ) from None
    (number, header), *rows = rows or [(1, [""])]
    unit = re.search(r"[_ (\[](mA|nm)[)\]]?$", header[0].strip())
    if len(header) != 2 or unit is None or header[1].strip().lower() != "weight":
        raise ValueError(
            f"{path}, line {number}: the header must name the control with its "
            "unit, mA or nm, and the weight, such as 'current_mA,weight' or "
            f"'detuning_nm,weight'. Received: {','.join(header)!r}"
        )
    points = np.array([_read_point(path, *row) for row in rows])
    if len(points) < LEAST_POINTS:
        raise ValueError(
            f"{path} must have at least {LEAST_POINTS} points. "
            f"Received: {len(points)} points"
        )
    return unit[1], points[:, 0], points[:, 1], [number for number, _ in rows]


def _read_point(path, number, row):
    try:
        first, second = map(float, row)
    except ValueError:
        first, second = math.nan, math.nan
    if not (math.isfinite(first) and math.isfinite(second)):
        raise ValueError(
            f"{path}, line {number}: expected two finite numbers, the control and the "
            f"weight. Received: {','.join(row)!r}"
        )
    return first, second
