"""Read the points of a measured tuning curve from a CSV file, and check them."""

import re

import numpy as np

from keras_pnn import _checks, _tables

LEAST_POINTS = 4
# In nm. No heater shifts a resonance so far; the wavelength of any laser is larger.
WIDEST_SHIFT = 200.0
# For each unit in a heading: the unit of the control, and how many make one of that.
_UNITS = {
    "mA": ("mA", 1),
    "A": ("mA", 1e-3),
    "µA": ("mA", 1e3),
    "uA": ("mA", 1e3),
    "V": ("V", 1),
    "mV": ("V", 1e3),
    "mW": ("mW", 1),
    "W": ("mW", 1e-3),
    "µW": ("mW", 1e3),
    "uW": ("mW", 1e3),
    "nm": ("nm", 1),
    "pm": ("nm", 1e3),
}
_UNITS = {_tables.unit(unit, [unit]): control for unit, control in _UNITS.items()}


def checked_points(control, weight, unit, place=lambda name, i: f"`{name}[{i}]`"):
    """Returns the points as float64 arrays with increasing controls.

    `place(name, index)` returns how messages refer to a point.
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
        (
            (control > WIDEST_SHIFT) & (unit == "nm"),
            "a shift of the resonance, not the wavelength of a laser: give the "
            "wavelength of the laser that the ring will see, minus this one",
        ),
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


def read_curves(path, name: str | None = None):
    """Reads tuning curves with common controls, one for each column of weights.

    Args:
        path: the file.
        name: a pattern for the heading of the only column of weights; `None` for all
            columns except the control.

    Returns:
        A list of (control, weight, unit).
    """
    table = _tables.read(path)
    units = [_tables.unit(heading, _UNITS) for heading in table.headings]
    controls = [i for i, unit in enumerate(units) if unit]
    weights = [
        i
        for i, heading in enumerate(table.headings)
        if (re.match(name, heading) if name else i not in controls)
    ]
    where = f"{table.path}, line {table.heading_line}"
    if len(controls) != 1 or not weights or (name and len(weights) != 1):
        raise ValueError(
            f"{where}: the header must name one control with its unit, mA, V, mW or "
            f"nm, and {'one weight' if name else 'weights'}, such as "
            "'current_mA,weight', 'I (mA);weight' or 'shift_nm,weight'. "
            f"Received: {', '.join(table.headings)!r}"
        )
    heading, (unit, parts) = table.headings[controls[0]], _UNITS[units[controls[0]]]
    if unit == "nm" and not re.search(r"(?i)shift|detun|delta|δ|∆", heading):
        raise ValueError(
            f"{where}: a control in nm must be a shift of the resonance, and be named "
            "'shift' or 'detuning'. A sweep of the laser's wavelength runs the other "
            "way: write `laser - wavelength`, with the wavelength of the laser that "
            f"the ring will see. Received: {heading!r}"
        )
    if len(table.rows) < LEAST_POINTS:
        raise ValueError(
            f"{path} must have at least {LEAST_POINTS} points. "
            f"Received: {len(table.rows)} points"
        )

    def place(name, i):
        return f"{table.place(i)}: `{name}`"

    control = table.numbers(controls[0]) / parts
    curves = [checked_points(control, table.numbers(i), unit, place) for i in weights]
    return [(*curve, unit) for curve in curves]
