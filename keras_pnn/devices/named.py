"""Convert deviations by name, or from a CSV file, to those of a device."""

import csv
import os

import keras
import numpy as np
import tensorflow as tf

from keras_pnn import _checks, _files, _tables
from keras_pnn.layers.lookup import architecture, find
from keras_pnn.layers.quantity import Quantity

_HEADER = ("layer", "imperfection", "index", "deviation", "unit")
_NEEDED = _HEADER[:-1]
# The first and the last line of a file that `write_csv` wrote: without the last, it was
# cut short.
_FIRST, _LAST = "# Deviations of one device", "# end"
# (name, index) of a variable → its deviation.
Deviations = dict[tuple[str, int], np.ndarray]


def given_once(model: keras.layers.Layer, names) -> dict[str, list[Quantity]]:
    """Returns name → its quantities; raises ValueError if two names share one."""
    addressed, keys = {}, {}
    for name in names:
        addressed[name] = find(model, name, weights=True)
        for key in ((q.name, q.index) for q in addressed[name]):
            if key in keys:
                raise ValueError(
                    "An imperfection must be given once. Received: "
                    f"{keys[key]!r} and {name!r}, which both set it"
                )
            keys[key] = name
    return addressed


def deviations_of(name: str, found: list[Quantity], amount: np.ndarray) -> Deviations:
    """Returns the deviations of the quantities that `find` found for a name."""
    deviations = {}
    for quantity in found:
        value = _checks.array(name, amount, tuple(quantity.variable.shape))
        if quantity.nominal is not None:
            _, _, short = name.rpartition("/")
            nominal = quantity.nominal if quantity.convert is None else 0.0
            quantity.layer.check_given(short, nominal + value)
        value = tf.constant(value, quantity.variable.dtype)
        # NumPy cannot convert a scalar tensor of bfloat16.
        deviation = quantity.deviation(value).numpy()
        quantity.check(deviation)
        deviations[quantity.name, quantity.index] = deviation
    return deviations


def named_deviations(
    model: keras.layers.Layer, values: dict
) -> tuple[Deviations, dict[str, list[list[int]]]]:
    """Returns (deviations, architecture) of a device from its named deviations."""
    named = isinstance(values, dict) and all(isinstance(name, str) for name in values)
    if not named or not values:
        example = "{'temperature': 1.0, 'mrr_bank/resonance_shift': array}"
        expected = f"a dictionary of names and deviations, such as {example}"
        raise _checks.error("deviations", expected, _checks.short(values))
    merged: Deviations = {}
    for name, found in given_once(model, values).items():
        merged |= deviations_of(name, found, _checks.array(name, values[name]))
    return merged, architecture(model, [name for name, _ in merged])


def read_csv(model: keras.layers.Layer, path: str | os.PathLike) -> dict:
    """Reads name → deviation from a file, as for `SimulatedDevice.from_csv`."""
    table = _tables.read(path)
    with open(path, encoding="utf-8", errors="ignore") as file:
        lines = file.read().split("\n")
    last = next(filter(None, map(str.strip, reversed(lines))))
    if lines[0].startswith(_FIRST) and not last.startswith(_LAST):
        expected = f"a last line that begins with {_LAST!r}"
        raise _tables.error(path, expected, repr(last))
    if missing := [name for name in _NEEDED if name not in table.headings]:
        expected = f"the columns {', '.join(_HEADER)}; `unit` may be left out"
        raise _tables.error(path, expected, f"{table.headings}, without {missing}")
    if not table.rows:
        raise _tables.error(path, "at least one line below the headings", "none")
    values: dict[str, np.ndarray] = {}
    found: dict[str, list[Quantity]] = {}
    for row, number, where in table.records("deviation"):
        name = "/".join(filter(None, (row["layer"], row["imperfection"])))
        try:
            found.setdefault(name, find(model, name, weights=True))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        first = found[name][0]
        unit = first.unit if first.convert is None else ""
        if row.get("unit", unit) != unit:
            expected = f"the unit {unit!r} of {name}"
            raise _tables.error(where, expected, repr(row["unit"]))
        if not row["index"]:
            if name in values:
                raise _tables.error(where, f"{name} once", "it again")
            values[name] = np.array(number)
            continue
        shape = tuple(first.variable.shape)
        index = _tables.element(row["index"], shape)
        if index is None or not first.exists[index]:
            expected = f"an index of an element of {name}, of shape {shape}"
            raise _tables.error(where, expected, repr(row["index"]))
        # NaN marks the elements that are still to be read.
        array = values.setdefault(name, np.where(first.exists, np.nan, 0.0))
        if array.shape != shape or not np.isnan(array[index]):
            raise _tables.error(where, f"each element of {name} once", row["index"])
        array[index] = number
    for name, array in values.items():
        if np.isnan(array).any():
            there = found[name][0].exists
            expected = f"{there.sum()} elements of {name}, or one line without an index"
            raise _tables.error(path, expected, np.isfinite(array[there]).sum())
    return values


def write_csv(pairs: list[tuple[Quantity, np.ndarray]], path) -> None:
    """Writes a device's quantities and deviations, as `read_csv` reads them."""
    names = [quantity.path for quantity, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        expected = "a model whose layers each have a name of their own"
        raise _checks.error("model", expected, f"{', '.join(twice)} more than once")
    with (
        _files.atomic(path) as part,
        open(part, "w", newline="", encoding="utf-8") as file,
    ):
        file.write(f"{_FIRST}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        for quantity, deviation in pairs:
            for index in map(tuple, np.argwhere(quantity.exists).tolist()):
                value = np.format_float_scientific(deviation[index], trim="-")
                label = ";".join(map(str, index))
                row = quantity.layer.name, quantity.name, label, value, quantity.unit
                writer.writerow(row)
        file.write(f"{_LAST}\n")
