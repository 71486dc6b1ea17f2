"""Write controls to a table for the laboratory, and read them back."""

import csv
import os
from typing import NamedTuple

import keras
import numpy as np

from keras_pnn import _files, _tables
from keras_pnn.layers.limits import DAC, ControlRange, range_of
from keras_pnn.layers.lookup import physical_layers
from keras_pnn.layers.physical import PhysicalLayer
from keras_pnn.layers.quantity import Quantity
from keras_pnn.layers.ring_layer import RingLayer
from keras_pnn.physics.tuning import MeasuredTuning, RingTunings

_HEADER = [
    "layer",
    "control",
    "index",
    "tile",
    "row",
    "column",
    "value",
    "unit",
    "code",
    "power_mW",
]


def export_controls(model: keras.layers.Layer, path: str | os.PathLike) -> dict:
    """Writes every control of a model to a CSV file.

    One line for each control: layer, control, `index` in the variable (`2;0;13`),
    `tile`, `row` and `column` on the chip, counted from 0 (a ring's pass and place
    on the bank; a cell's upper mode and column in the mesh; a mask pixel's frame and
    place on the modulator), then `value`, `unit`, the converter's `code` and the
    heater's `power_mW`. With a `dac`, value and power are those of the code; without a
    `DAC`, the code is empty.

    Args:
        model: a built model with physical layers.
        path: the file. It is replaced whole or not at all.

    Returns:
        Name of each weight bank → a dictionary of its `rings`, `passes` and
        `heater_power_mW`, the sum over its rings, or `None` without heaters.

    Raises:
        ValueError: If the model has no physical layer, two of them share a name, or a
            control is not finite or outside its tuning's range.

    Example:

    >>> table = pnn.export_controls(model, "controls.csv")
    """
    layers = _named_layers(model)
    summary, rows = {}, []
    for layer in layers:
        for name, variable in layer.controls.items():
            if not np.isfinite(np.asarray(variable)).all():
                raise ValueError(
                    f"Controls must be finite. Received: NaN or infinity in "
                    f"{layer.name}/{name}"
                )
        controls, _ = layer.current_values()
        dac, power = getattr(layer, "dac", None), None
        for name, values in layer.as_set(controls).items():
            values, quantity = np.asarray(values), layer.quantity(name)
            codes = dac.code(values) if isinstance(dac, DAC) else None
            if isinstance(layer, RingLayer):
                _validate(layer, values, quantity.path)
                power = layer.heater_power()
                power = None if power is None else np.asarray(power)
                summary[layer.name] = {
                    "rings": values.size,
                    "passes": layer.passes,
                    "heater_power_mW": None if power is None else float(power.sum()),
                }
            for index in map(tuple, np.argwhere(quantity.exists).tolist()):
                label = ";".join(map(str, index))
                value = np.format_float_scientific(values[index], trim="-")
                code = "" if codes is None else codes[index]
                watts = "" if power is None else f"{power[index]:.9g}"
                place = layer.position(name, index)
                cells = (label, *place, value, quantity.unit, code, watts)
                rows.append([layer.name, name, *cells])
    with (
        _files.atomic(path) as part,
        open(part, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([_HEADER, *rows])
    return summary


def load_controls(model: keras.layers.Layer, path: str | os.PathLike) -> None:
    """Sets the controls of a model from a file that `export_controls` wrote.

    Nothing is set unless the whole file fits the model. The file may have been saved by
    a spreadsheet, with semicolons or tabs between cells, decimal commas, or comment
    lines that begin with `#`. Values are read; codes and powers are not.

    Args:
        model: a built model with the same physical layers, by name.
        path: the CSV file.

    Raises:
        ValueError: If the file is not a table in UTF-8, a column is missing, a line
            is cut short or too long, a value is not a number or out of the control's
            range, a unit differs, or a control is missing or given twice. The error
            names the file and the line.

    Example:

    >>> table = pnn.export_controls(model, "controls.csv")
    >>> pnn.load_controls(model, "controls.csv")
    """
    known: dict[tuple[str, str], _Reading] = {}
    for layer in _named_layers(model):
        for name in layer.controls:
            quantity = layer.quantity(name)
            # NaN marks the values still to be read.
            array = np.where(quantity.exists, np.nan, 0.0)
            known[layer.name, name] = _Reading(quantity, array, *_range(quantity))
    table = _tables.read(path)
    if missing := [c for c in _HEADER if c not in table.headings]:
        expected = f"the columns {', '.join(_HEADER)}"
        raise _tables.error(path, expected, f"{table.headings}, without {missing}")
    if table.cut:
        # A truncated value may still be a number.
        received = f"one that ends behind {', '.join(table.rows[-1]).rstrip(', ')!r}"
        raise _tables.error(table.place(-1), "a whole line", received)
    for row, value, where in table.records("value"):
        _read(row, value, known, where)
    for quantity, array, *_ in known.values():
        if np.isnan(array).any():
            given = ~np.isnan(array[quantity.exists])
            expected = f"{given.size} values of {quantity.path}"
            raise _tables.error(path, expected, given.sum())
    for quantity, array, *_ in known.values():
        quantity.variable.assign(array)


class _Reading(NamedTuple):
    """A control, its values read so far, and their range."""

    quantity: Quantity
    array: np.ndarray
    low: float
    high: float


def _read(row: dict, value: float, known: dict, where: str) -> None:
    """Checks one line of a file and stores its value."""
    key = (row["layer"], row["control"])
    if key not in known:
        names = ", ".join("/".join(k) for k in known)
        raise _tables.error(where, f"one of the controls {names}", "/".join(key))
    quantity, array, low, high = known[key]
    if row["unit"] != quantity.unit:
        expected = f"the unit {quantity.unit!r} of {quantity.path}"
        raise _tables.error(where, expected, repr(row["unit"]))
    index = _tables.element(row["index"], array.shape)
    if index is None or abs(value) > float(np.finfo("float32").max):
        expected = f"an index inside {array.shape} and a finite value"
        received = f"index {row['index']!r}, value {row['value']!r}"
        raise _tables.error(where, expected, received)
    element = f"{quantity.path}[{row['index']}]"
    if not quantity.exists[index]:
        raise _tables.error(where, "an element that the hardware has", element)
    if not np.isnan(array[index]):
        raise _tables.error(where, "each control once", f"{element} again")
    if isinstance(quantity.layer, RingLayer):
        _validate(quantity.layer, value, where)
    # Files hold float32 values, in which a limit of 0.1 is slightly larger.
    if not np.float32(low) <= np.float32(value) <= np.float32(high):
        expected = f"a value from {low} to {high}"
        tuning = getattr(quantity.layer, "tuning", None)
        if isinstance(tuning, MeasuredTuning | RingTunings) and not (
            tuning.training_range[0] <= value <= tuning.training_range[1]
        ):
            expected += ", away from the ends of the measured curve by its `margin`"
        raise _tables.error(where, expected, value)
    array[index] = value


def _range(control: Quantity) -> tuple[float, float]:
    """Returns the range that a control's constraint and converter allow."""
    constraint, dac = control.variable.constraint, getattr(control.layer, "dac", None)
    low, high = range_of(constraint)
    if isinstance(dac, DAC) and isinstance(constraint, ControlRange):
        # The nearest code to a limit may lie half a step beyond it.
        codes = dac(keras.ops.convert_to_tensor([low, high], control.variable.dtype))
        low, high = min(low, float(codes[0])), max(high, float(codes[1]))
    return low, high


def _validate(layer: RingLayer, controls, where: str) -> None:
    try:
        layer.tuning.validate(controls)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _named_layers(model) -> list[PhysicalLayer]:
    layers = physical_layers(model)
    names = [layer.name for layer in layers]
    if not layers or len(set(names)) != len(names):
        raise ValueError(
            "`model` must have physical layers, each with a name of its own. Received: "
            f"{names}"
        )
    return layers
