"""Turn a robustness result into JSON, and into rows for tables and CSV."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator

import numpy as np

from keras_pnn.devices import SimulatedDevice
from keras_pnn.robustness import statistics
from keras_pnn.robustness.report.formatting import open_ends

_FIXED = ("model", "section", "name", "value", "value_2", "device")


def as_json(result) -> str:
    """Returns a `RobustnessResult` as JSON, on one line."""
    return json.dumps(as_dict(result), allow_nan=False, ensure_ascii=False) + "\n"


def as_dict(result) -> dict:
    """Returns the result of `RobustnessResult.to_dict`."""
    found = _fields(result)
    for name, model in result.models.items():
        values = found["models"][name]
        values["statistics"] = _plain(_statistics(model.devices))
        values["yield"] = _plain(result.yield_of(name))
        for key, scan in model.sweeps.items():
            values["sweeps"][key] |= _plain(_sweep_figures(result, scan))
        if model.grid is not None:
            values["grid"]["statistics"] = _plain(_statistics(model.grid.devices))
    return found


def _plain(value):
    """Returns records, arrays and numbers, however nested, in JSON's types."""
    if isinstance(value, SimulatedDevice):
        named = value.deviations.items()
        return {f"{name}[{index}]": _plain(array) for (name, index), array in named}
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _fields(record) -> dict:
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def _statistics(devices: dict | None) -> dict | None:
    """Returns metric → statistics over the devices, the first axis."""
    return devices and {name: statistics.summary(v) for name, v in devices.items()}


def _sweep_figures(result, scan) -> dict:
    asked = result.metric, result.spec, result.mode
    low, high = scan.tolerance(*asked)
    low_is_end, high_is_end = open_ends(scan, low, high)
    return {
        "statistics": _statistics(scan.devices),
        "tolerance": {
            "low": low,
            "high": high,
            "width": high - low,
            "low_is_end": low_is_end,
            "high_is_end": high_is_end,
        },
        "mean_over_range": {n: scan.area(n) for n in scan.design or scan.devices},
        "yields": scan.yields(*asked) if scan.axes[0].random else None,
    }


def as_csv(result) -> str:
    """Returns a `RobustnessResult` as comma-separated values."""
    found, stream = rows(result), io.StringIO()
    writer = csv.DictWriter(stream, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def rows(result) -> list[dict]:
    """Returns one row for each measured point, all with the same keys.

    The keys are the columns of `RobustnessResult.to_dataframe`; missing values are
    `None`.
    """
    found = [
        ({"model": name, **place}, metrics)
        for name, model in result.models.items()
        for place, metrics in _model_rows(model)
    ]
    if (part := result.transfer) is not None:
        for i, j in np.ndindex(len(part.models), len(part.devices)):
            place = {"section": "transfer", "device": part.devices[j]}
            metrics = _at(part.metrics, (i, j))
            found.append(({"model": part.models[i], **place}, metrics))
    names = dict.fromkeys(name for _, metrics in found for name in metrics)
    # A metric must not replace a fixed column of the same name.
    columns = {n: f"metric {n}" if n in _FIXED else n for n in names}
    return [
        {key: place.get(key) for key in _FIXED}
        | {c: float(metrics[n]) if n in metrics else None for n, c in columns.items()}
        for place, metrics in found
    ]


def _model_rows(model) -> Iterator[tuple[dict, dict]]:
    yield {"section": "nominal", "device": "design"}, model.nominal
    yield from _device_rows({"section": "device"}, model.devices, model.labels)
    for name, scan in model.sweeps.items():
        yield from _scan_rows("sweep", name, scan, model.labels)
    if model.grid is not None:
        name = " × ".join(axis.name for axis in model.grid.axes)
        yield from _scan_rows("grid", name, model.grid, model.labels)
    if model.worst is not None:
        radii = ", ".join(f"{k} = {v:g}" for k, v in model.worst.radius.items())
        yield {"section": "worst", "name": radii, "device": ""}, model.worst.metrics
    if (part := model.sensitivity) is not None:
        for i, j in np.ndindex(len(part.layers), len(part.kinds)):
            place = {"name": part.layers[i], "value": str(part.kinds[j]), "device": ""}
            metrics = _at(part.metrics, (i, j))
            # A layer without this imperfection was not measured.
            if not np.isnan(list(metrics.values())).all():
                yield {"section": "sensitivity", **place}, metrics


def _scan_rows(section: str, name: str, scan, labels) -> Iterator[tuple[dict, dict]]:
    columns = [
        axis.values.tolist() if axis.values.ndim == 1 else axis.ticks
        for axis in scan.axes
    ]
    for index in np.ndindex(*map(len, columns)):
        place = {"section": section, "name": name}
        for key, column, i in zip(("value", "value_2"), columns, index, strict=False):
            place[key] = column[i]
        if scan.design is not None:
            yield {**place, "device": "design"}, _at(scan.design, index)
        yield from _device_rows(place, scan.devices, labels, index)


def _device_rows(place: dict, devices, labels, index=()) -> Iterator[tuple[dict, dict]]:
    count = len(next(iter(devices.values()))) if devices else 0
    for i in range(count):
        label = dict(enumerate(labels)).get(i) or f"device {i}"
        yield {**place, "device": label}, _at(devices, (i, *index))


def _at(metrics: dict, index: tuple) -> dict:
    return {name: values[index] for name, values in metrics.items()}
