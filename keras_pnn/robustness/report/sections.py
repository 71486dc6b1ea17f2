"""A robustness report as sections of tables, which text and HTML both show."""

import numpy as np

from keras_pnn.robustness import statistics
from keras_pnn.robustness.report.parts import (
    curvature_section,
    grid_section,
    landscape_section,
    sensitivity_section,
    setting_section,
    transfer_section,
    worst_section,
)
from keras_pnn.robustness.report.words import (
    ABSENT,
    Display,
    Section,
    Table,
    axis_label,
    chosen,
    group_name,
    having,
    interval,
    model_table,
    number,
    plain_name,
    points,
    specification,
    yield_rows,
)


def sections(result) -> list[Section]:
    """Returns the parts that a result has, in the order of a report.

    Args:
        result: a `RobustnessResult`.
    """
    found = [_summary(result), _devices(result)]
    names = dict.fromkeys(n for m in result.models.values() for n in m.sweeps)
    found += [_sweep(result, name) for name in names]
    rest = (
        grid_section,
        worst_section,
        sensitivity_section,
        curvature_section,
        landscape_section,
        transfer_section,
        setting_section,
    )
    found += [section(result) for section in rest]
    return [section for section in found if section is not None]


def _summary(result) -> Section:
    display, metric = Display.of(result), result.metric
    tail, worst = ("p05", "min") if result.mode == "max" else ("p95", "max")
    models = result.models.values()

    def shown(value):
        return display.number(value, unit=True)

    def statistic(key):
        found = [m.devices and statistics.summary(m.devices[metric]) for m in models]
        return [shown(summary[key]) if summary else ABSENT for summary in found]

    def tolerance(name):
        scans = [m.sweeps.get(name) for m in models]
        arguments = metric, result.spec, result.mode
        return [interval(s, *arguments)[0] if s else ABSENT for s in scans]

    def sharpness(group):
        parts = [m.curvature.get(group) for m in models]
        return [number(p.eigenvalues.eigenvalues[0]) if p else ABSENT for p in parts]

    rows = {
        f"nominal {metric}": [shown(m.nominal[metric]) for m in models],
        "devices: mean": statistic("mean"),
        f"devices: {tail[1:].lstrip('0')}th percentile": statistic(tail),
        "devices: worst": statistic(worst),
        **yield_rows(result, f"yield at {specification(result)}"),
    }
    for model in models:
        for name, scan in model.sweeps.items():
            unit = scan.axes[0].unit
            unit = f" ({unit})" if unit else ""
            rows[f"tolerance to {plain_name(name)}{unit}"] = tolerance(name)
    rows["adversarial worst case"] = [
        shown(m.worst.metrics[metric]) if m.worst else ABSENT for m in models
    ]
    for group in dict.fromkeys(group for m in models for group in m.curvature):
        rows[f"λ_max of the Hessian, {group_name(group)}"] = sharpness(group)
    rows = {
        name: cells
        for name, cells in rows.items()
        if any(cell != ABSENT for cell in cells)
    }
    return Section(
        "summary",
        "Summary",
        f"Specification: {specification(result)}. Nominal is the design, with no "
        "imperfection. Yield is the share of devices that keep the specification, "
        "with how many did; its interval is Wilson's. Tolerance: the interval around 0 "
        "in which the specification is kept.",
        (model_table(result, "", rows),),
    )


def _devices(result) -> Section | None:
    devices = having(result, "devices")
    if not devices:
        return None
    tables = []
    names = dict.fromkeys(name for values in devices.values() for name in values)
    for metric in sorted(names, key=lambda name: name != result.metric):
        display = Display.of(result, metric)
        found = {
            name: statistics.summary(values[metric])
            for name, values in devices.items()
            if metric in values
        }
        rows = {
            "nominal": [
                display.number(m.nominal.get(metric)) for m in result.models.values()
            ]
        }
        for key in ("mean", "std", "median", "p05", "p95", "min", "max"):
            rows[key] = [
                display.number(found[n][key]) if n in found else ABSENT
                for n in result.models
            ]
        if metric == result.metric:
            rows |= yield_rows(result, "yield")
        tables.append(model_table(result, display.label, rows))
    count = max(len(next(iter(v.values()))) for v in devices.values())
    return Section(
        "devices",
        "DeviceSet",
        f"{count} devices, each the design with deviations of its own. p05 and p95 "
        "are percentiles: 90 % of the devices lie between them; std is the standard "
        f"deviation. Yield: the share with {specification(result)}, with its 95 % "
        "interval (Wilson).",
        tuple(tables),
    )


def _sweep(result, name: str) -> Section:
    display, metric = Display.of(result), result.metric
    scans = {n: m.sweeps[name] for n, m in result.models.items() if name in m.sweeps}
    axis = next(iter(scans.values())).axes[0]
    tables = [
        _sweep_table(f"{model}: {display.label}", scan, display, _rows_of(result.mode))
        for model, scan in scans.items()
    ]
    if metric != "loss":
        tables += _loss_tables(result, scans)
    if axis.random:
        tables += _yield_tables(result, scans)
    if axis.positions is not None:
        tables.append(_tolerance_table(result, scans, axis))
    return Section(
        f"sweep:{name}",
        ("Spread: " if axis.random else "Sweep: ") + plain_name(name),
        _sweep_meaning(result, axis, scans),
        tuple(tables),
    )


def _rows_of(mode: str) -> tuple[str, ...]:
    """The statistics that a sweep shows of the specification's metric."""
    return ("mean", "median", "p05", "p95", "min" if mode == "max" else "max")


def _heads(axis) -> tuple[str, ...]:
    """The headings of a table along an axis."""
    return ("", *(points(axis)[i] for i in chosen(len(axis))))


def _lines(scan, display, statistics_shown, prefix: str = "") -> list[tuple[str, ...]]:
    """The rows of one scan: the design, and statistics over the devices."""
    at, metric = chosen(len(scan.axes[0])), display.metric
    found = {}
    if scan.design is not None and metric in scan.design:
        found["design"] = np.asarray(scan.design[metric])
    if scan.devices is not None and metric in scan.devices:
        summary = scan.summary(metric)
        found |= {key: summary[key] for key in statistics_shown}
    return [
        (prefix + key, *map(display.number, values[at]))
        for key, values in found.items()
    ]


def _sweep_table(title: str, scan, display, statistics_shown) -> Table:
    axis = scan.axes[0]
    rows = _lines(scan, display, statistics_shown)
    return Table(f"{title} against {axis_label(axis)}", _heads(axis), tuple(rows))


def _loss_tables(result, scans) -> list[Table]:
    """The loss of all models in one table, which may be short: it is not specified."""
    display = Display.of(result, "loss")
    rows = [
        line
        for model, scan in scans.items()
        for line in _lines(scan, display, ("mean", "p95"), f"{model}: ")
    ]
    axis = next(iter(scans.values())).axes[0]
    title = f"loss against {axis_label(axis)}"
    return [Table(title, _heads(axis), tuple(rows))] if rows else []


def _yield_tables(result, scans) -> list[Table]:
    axis, rows = next(iter(scans.values())).axes[0], []
    for model, scan in scans.items():
        found = scan.yields(result.metric, result.spec, result.mode)
        if found is None:
            continue
        found = [found[i] for i in chosen(len(axis))]
        rows.append((model, *(f"{100 * y.value:.1f}" for y in found)))
        for side, bound in enumerate(("low", "high")):
            values = [f"{100 * y.interval[side]:.1f}" for y in found]
            rows.append((f"{model}: {bound}", *values))
    title = f"yield at {specification(result)} (%), 95 % interval"
    title += f" against {axis_label(axis)}"
    return [Table(title, _heads(axis), tuple(rows))] if rows else []


def _tolerance_table(result, scans, axis) -> Table:
    metric, display = result.metric, Display.of(result)
    found = {n: interval(s, metric, result.spec, result.mode) for n, s in scans.items()}
    absent = (ABSENT, ABSENT)
    unit = f" ({axis.unit})" if axis.unit else ""
    rows = {
        f"tolerance{unit}": [found.get(n, absent)[0] for n in result.models],
        f"width{unit}": [found.get(n, absent)[1] for n in result.models],
        f"mean {metric} over the range": [
            display.number(scans[n].area(metric), unit=True) if n in scans else ABSENT
            for n in result.models
        ],
    }
    return model_table(result, f"tolerance at {specification(result)}", rows)


def _sweep_meaning(result, axis, scans) -> str:
    devices = any(scan.devices is not None for scan in scans.values())
    curve = "the mean over the devices" if devices else "the design"
    if axis.random:
        what = (
            "At each point the devices' deviations are multiplied by the factor. "
            if axis.name == "variation"
            else "At each point devices are drawn with this standard deviation. "
        )
    else:
        what = "The design with this deviation alone" + (
            ", and every device with it added to its own deviations. "
            if devices
            else ". "
        )
    if devices:
        what += "p05 and p95 are percentiles of the devices at each point. "
    where = (
        f"Tolerance: the interval around 0 within which {curve} keeps "
        f"{specification(result)}, straight between points; ≤ and ≥ mark an end of "
        "the measured range. Mean over the range: the area under that curve over the "
        "width of the range."
        if axis.positions is not None
        else ""
    )
    return (what + where).strip()
