"""Turn a robustness result into rows, one for each measured point."""

import csv
import io
from collections.abc import Iterator

import numpy as np

_FIXED = ("model", "section", "name", "value", "value_2", "device")


def as_csv(result) -> str:
    """Returns a `RobustnessResult` as comma-separated values."""
    found, stream = rows(result), io.StringIO()
    writer = csv.DictWriter(stream, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def rows(result) -> list[dict]:
    """Returns one row for each measured point, all with the same keys.

    Args:
        result: a `RobustnessResult`.

    Returns:
        Dicts with

        - `model`: the model's name;
        - `section`: `"nominal"`, `"device"`, `"sweep"`, `"grid"`, `"worst"`,
          `"sensitivity"` or `"transfer"`;
        - `name`: of the sweep, the grid's two axes, the radii of the worst case, or
          the layer;
        - `value`, `value_2`: the point along the axes, a number, or a text such as
          `"(0, 0.5)"` for a point of several elements; the kind of imperfection of a
          sensitivity;
        - `device`: the device's label, `"design"`, or `""` for a mean over devices;
        - each metric in a column of its name, in its own unit (0 … 1 for accuracy).

        What a row has no value for is `None`.
    """
    found = [
        ({"model": name, **place}, metrics)
        for name, model in result.models.items()
        for place, metrics in _model_rows(model)
    ]
    if (part := result.transfer) is not None:
        for i, j in np.ndindex(len(part.models), len(part.devices)):
            place = {"section": "transfer", "device": part.devices[j]}
            metrics = {k: v[i, j] for k, v in part.metrics.items()}
            found.append(({"model": part.models[i], **place}, metrics))
    names = dict.fromkeys(name for _, metrics in found for name in metrics)
    # A metric of the same name must not take the place of a column.
    columns = {n: f"metric {n}" if n in _FIXED else n for n in names}
    return [
        {key: place.get(key) for key in _FIXED}
        | {c: float(metrics[n]) if n in metrics else None for n, c in columns.items()}
        for place, metrics in found
    ]


def _model_rows(model) -> Iterator[tuple[dict, dict]]:
    yield {"section": "nominal", "device": "design"}, model.nominal
    if model.devices is not None:
        for index in range(_count(model.devices)):
            place = {"section": "device", "device": _label(model.labels, index)}
            yield place, _at(model.devices, index)
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
        axis.values.tolist() if np.ndim(axis.values) == 1 else axis.ticks
        for axis in scan.axes
    ]
    for index in np.ndindex(*map(len, columns)):
        place = {"section": section, "name": name}
        for key, column, i in zip(("value", "value_2"), columns, index, strict=False):
            place[key] = column[i]
        if scan.design is not None:
            yield {**place, "device": "design"}, _at(scan.design, index)
        if scan.devices is not None:
            for device in range(_count(scan.devices)):
                label = _label(labels, device)
                yield {**place, "device": label}, _at(scan.devices, (device, *index))


def _at(metrics: dict, index) -> dict:
    return {name: values[index] for name, values in metrics.items()}


def _count(devices: dict) -> int:
    return len(next(iter(devices.values())))


def _label(labels, index: int) -> str:
    return (labels[index] if index < len(labels) else "") or f"device {index}"
