"""A robustness report as text for the terminal, and as rows."""

import io

import numpy as np

from keras_pnn.robustness.report.sections import sections

_WIDTH = 100
_LABEL_WIDTH = 36
_FIXED = ("model", "section", "name", "value", "value_2", "device")


def text(result) -> str:
    """Returns a report as tables of text, 100 characters wide.

    Args:
        result: a `RobustnessResult`.

    Returns:
        Lines of plain Unicode, without colours.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=_WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for section in sections(result):
        console.rule(Text(section.title), characters="━", align="left")
        if section.meaning:
            console.print(Padding(Text(section.meaning), (0, 0, 0, 2)))
        for table in section.tables:
            if table.title:
                console.print(Text(table.title))
            for part in _fitting(table):
                console.print(part)
        for key, value in section.lines.items():
            console.print(Padding(Text(f"{key}: {value}"), (0, 0, 0, 2)))
        console.print()
    lines = stream.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _fitting(table):
    """Yields rich tables with as many columns each as fit on a line."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    rows = [table.columns, *table.rows]
    widths = [
        max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)
    ]
    # Each column has a blank on either side and a line; the table one line more.
    room = _WIDTH - min(widths[0], _LABEL_WIDTH) - 4
    groups, used = [[]], 0
    for index, width in enumerate(widths[1:], start=1):
        if groups[-1] and used + width + 3 > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += width + 3
    for group in groups:
        shown = Table(header_style="", box=box.ROUNDED)
        shown.add_column(
            Text(table.columns[0]), max_width=_LABEL_WIDTH, overflow="fold"
        )
        for index in group:
            heading = Text(table.columns[index])
            shown.add_column(heading, justify="right", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(row[index]) for index in (0, *group)))
        yield shown


def long_rows(result) -> list[dict]:
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
    rows = []
    for name, model in result.models.items():
        rows += [{"model": name, **row} for row in _model_rows(model)]
    part = result.transfer
    if part is not None:
        for i, j in np.ndindex(len(part.models), len(part.devices)):
            metrics = {k: float(v[i, j]) for k, v in part.metrics.items()}
            place = {"section": "transfer", "device": part.devices[j]}
            rows.append({"model": part.models[i], **place, "metrics": metrics})
    names = dict.fromkeys(key for row in rows for key in row["metrics"])
    # A metric of the same name must not take the place of a column.
    columns = {n: f"metric {n}" if n in _FIXED else n for n in names}
    return [
        {key: row.get(key) for key in _FIXED}
        | {column: row["metrics"].get(n) for n, column in columns.items()}
        for row in rows
    ]


def _model_rows(model):
    yield {"section": "nominal", "device": "design", "metrics": _floats(model.nominal)}
    if model.devices is not None:
        for index in range(len(next(iter(model.devices.values())))):
            yield {
                "section": "device",
                "device": _label(model.labels, index),
                "metrics": _floats({k: v[index] for k, v in model.devices.items()}),
            }
    for name, scan in model.sweeps.items():
        yield from _scan_rows("sweep", name, scan, model.labels)
    if model.grid is not None:
        name = " × ".join(axis.name for axis in model.grid.axes)
        yield from _scan_rows("grid", name, model.grid, model.labels)
    if model.worst is not None:
        radii = ", ".join(f"{k} = {v:g}" for k, v in model.worst.radius.items())
        metrics = _floats(model.worst.metrics)
        yield {"section": "worst", "name": radii, "device": "", "metrics": metrics}
    if model.sensitivity is not None:
        part = model.sensitivity
        for i, j in np.ndindex(len(part.layers), len(part.kinds)):
            metrics = _floats({k: v[i, j] for k, v in part.metrics.items()})
            # A layer without this imperfection was not measured.
            if all(np.isnan(value) for value in metrics.values()):
                continue
            place = {"name": part.layers[i], "value": part.kinds[j], "device": ""}
            yield {"section": "sensitivity", **place, "metrics": metrics}


def _scan_rows(section, name, scan, labels):
    columns = [_points(axis) for axis in scan.axes]
    for index in np.ndindex(*map(len, columns)):
        place = {"section": section, "name": name}
        keys = ("value", "value_2")[: len(index)]
        for key, column, i in zip(keys, columns, index, strict=True):
            place[key] = column[i]
        if scan.design is not None:
            metrics = _floats({k: v[index] for k, v in scan.design.items()})
            yield {**place, "device": "design", "metrics": metrics}
        if scan.devices is not None:
            for device in range(len(next(iter(scan.devices.values())))):
                values = {k: v[(device, *index)] for k, v in scan.devices.items()}
                label = _label(labels, device)
                yield {**place, "device": label, "metrics": _floats(values)}


def _points(axis) -> list:
    if np.ndim(axis.values) == 1:
        return [float(value) for value in axis.values]
    return axis.ticks


def _label(labels, index: int) -> str:
    return (labels[index] if index < len(labels) else "") or f"device {index}"


def _floats(values: dict) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}
