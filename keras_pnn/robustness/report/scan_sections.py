"""Arrange the sweeps and the grid of a robustness result in sections of tables."""

from keras_pnn._display import Table
from keras_pnn.robustness.axes import FactorAxis
from keras_pnn.robustness.report.formatting import (
    Display,
    Section,
    chosen,
    interval,
    models_table,
    shown_points,
    specification,
)


def sweep_section(result, name: str, scans: dict) -> Section:
    display = Display.of(result)
    axis = next(iter(scans.values())).axes[0]
    heads, label = ("", *shown_points(axis)), axis.line_label
    shown = ("mean", "median", "p05", "p95", "min" if result.mode == "max" else "max")
    tables = [
        Table(
            f"{model}: {display.label} against {label}",
            heads,
            _scan_rows(scan, display, shown),
        )
        for model, scan in scans.items()
    ]
    others = {}
    if result.metric != "loss":
        # One short table for the losses of all models, which have no specification.
        loss = Display.of(result, "loss")
        others[f"loss against {label}"] = [
            row
            for model, scan in scans.items()
            for row in _scan_rows(scan, loss, ("mean", "p95"), f"{model}: ")
        ]
    if axis.random:
        title = f"yield at {specification(result)} (%), 95 % interval against {label}"
        others[title] = [r for one in scans.items() for r in _yields(result, *one)]
    tables += [Table(title, heads, rows) for title, rows in others.items() if rows]
    if axis.positions is not None:
        tables.append(_tolerances(result, axis, scans))
    return Section(
        f"sweep:{name}",
        ("Spread: " if axis.random else "Sweep: ") + axis.words,
        _sweep_meaning(result, axis, scans),
        tables,
    )


def _scan_rows(scan, display: Display, shown, prefix: str = "") -> list[tuple]:
    """Returns the rows of one sweep: the design, and statistics over the devices."""
    found = {}
    if scan.design is not None:
        found["design"] = scan.design[display.metric]
    if scan.devices is not None:
        summary = scan.summary(display.metric)
        found |= {key: summary[key] for key in shown}
    return [
        (prefix + key, *map(display.number, values[chosen(len(values))]))
        for key, values in found.items()
    ]


def _yields(result, model: str, scan) -> list[tuple]:
    """Returns the rows of the yields along a spread, with their intervals."""
    found = scan.yields(result.metric, result.spec, result.mode)
    some = [found[i] for i in chosen(len(found))]
    rows = {
        model: [y.value for y in some],
        f"{model}: low": [y.interval[0] for y in some],
        f"{model}: high": [y.interval[1] for y in some],
    }
    return [(name, *(f"{100 * v:.1f}" for v in row)) for name, row in rows.items()]


def _tolerances(result, axis, scans: dict) -> Table:
    display = Display.of(result)
    intervals = {model: interval(result, scan) for model, scan in scans.items()}
    rows = {
        axis.with_unit("tolerance"): {n: span for n, (span, _) in intervals.items()},
        axis.with_unit("width"): {n: width for n, (_, width) in intervals.items()},
        f"mean {result.metric} over the range": {
            model: display.number(scan.area(result.metric), unit=True)
            for model, scan in scans.items()
        },
    }
    return models_table(result, f"tolerance at {specification(result)}", rows)


def _sweep_meaning(result, axis, scans: dict) -> str:
    devices = any(scan.devices is not None for scan in scans.values())
    if not axis.random:
        added = ", and every device with it added to its own deviations"
        what = f"The design with this deviation alone{added if devices else ''}. "
    elif isinstance(axis, FactorAxis):
        what = "At each point the devices' deviations are multiplied by the factor. "
    else:
        what = "At each point devices are drawn with this standard deviation. "
    if devices:
        what += "p05 and p95 are percentiles of the devices at each point. "
    if axis.positions is not None:
        curve = "the mean over the devices" if devices else "the design"
        what += (
            f"Tolerance: the interval around 0 within which {curve} keeps "
            f"{specification(result)}, up to the last point before it first breaks it; "
            "≤ and ≥ mark an end of the measured range. Mean over the range: the area "
            "under that curve over the width of the range."
        )
    return what.strip()


def grid_section(result, grids: dict) -> Section:
    display, tables = Display.of(result), []
    for model, scan in grids.items():
        first, second = scan.axes
        values = scan.central(result.metric)[chosen(len(first))][:, chosen(len(second))]
        rows = [
            (point, *map(display.number, row))
            for point, row in zip(shown_points(first), values, strict=True)
        ]
        title = f"{model}: {display.label}; columns: {second.line_label}"
        heads = first.line_label, *shown_points(second)
        tables.append(Table(title, heads, rows))
    devices = any(scan.devices is not None for scan in grids.values())
    return Section(
        "grid",
        "Grid: " + " × ".join(a.words for a in next(iter(grids.values())).axes),
        f"{'The mean over the devices' if devices else 'The design'} with both "
        f"deviations at once. The line in the map is {specification(result)}.",
        tables,
    )
