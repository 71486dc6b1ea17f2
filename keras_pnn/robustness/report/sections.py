"""Arrange a robustness result in sections of tables.

Numbers come from `results.ModelRobustness`, whose arrays `points.gathered` makes of
what `ModelStudy.measure` found; `scan_sections` arranges its sweeps; `html` and `text`
write the sections.
"""

from collections.abc import Callable

import numpy as np

from keras_pnn._display import Table
from keras_pnn.robustness.report.formatting import (
    ABSENT,
    Cell,
    Display,
    Section,
    group_name,
    having,
    interval,
    models_table,
    number,
    specification,
    sweeps_of,
    words,
)
from keras_pnn.robustness.report.scan_sections import grid_section, sweep_section

# Labels of devices that a line holds.
_NAMED = 8
# Of `HardwareCost.total`.
_COSTS = {
    "heater_mW": "heaters (mW)",
    "power_mW": "all hardware (mW)",
    "multiplication_pJ": "energy per multiplication (pJ)",
}


def sections(result) -> list[Section]:
    """Returns the parts that a `RobustnessResult` has, in the order of a report."""
    found = [_summary(result), _devices(result)]
    found += [sweep_section(result, *sweep) for sweep in sweeps_of(result).items()]
    rest = (_worst, _sensitivity, _curvature, _landscape, _transfer, _light, _setting)
    found += [section(result) for section in (grid_section, *rest)]
    return [section for section in found if section is not None]


def _of(part: str, text: Callable) -> Cell:
    """Returns a cell with a text about a part of a model."""

    def cell(model):
        found = getattr(model, part)
        return found and text(found)

    return cell


def _yield_rows(result, heading: str) -> dict[str, Cell]:
    asked = result.metric, result.spec, result.mode

    def share(model):
        found = model.yield_of(*asked)
        return found and f"{100 * found.value:.1f} % ({found.passed}/{found.n})"

    def bounds(model):
        found = model.yield_of(*asked)
        return found and "{:.1f} … {:.1f} %".format(*(100 * v for v in found.interval))

    return {heading: share, f"{heading}, 95 % interval": bounds}


def _statistic(display: Display, key: str, unit: bool = False) -> Cell:
    """Returns a cell with a statistic of a metric over the devices."""

    def cell(model):
        found = model.summary(display.metric)
        return found and display.number(found[key], unit)

    return cell


def _nominal(display: Display, unit: bool = False) -> Cell:
    return lambda model: display.number(model.nominal.get(display.metric), unit)


def _summary(result) -> Section:
    display, asked = Display.of(result), (result.metric, result.spec, result.mode)
    tail, worst = ("p05", "min") if result.mode == "max" else ("p95", "max")
    names = {
        "devices: mean": "mean",
        f"devices: {tail[1:].lstrip('0')}th percentile": tail,
        "devices: worst": worst,
    }
    if _device_count(result) == 1:
        names = {"the device": "mean"}
    rows = {
        f"nominal {result.metric}": _nominal(display, unit=True),
        **{name: _statistic(display, key, True) for name, key in names.items()},
        **_yield_rows(result, f"yield at {specification(result)}"),
    }
    for name, scans in sweeps_of(result).items():
        axis = next(iter(scans.values())).axes[0]
        rows[f"tolerance to {axis.label}"] = lambda m, name=name: (
            name in m.sweeps and interval(m.sweeps[name], *asked)[0]
        )
    rows["adversarial worst case"] = _of(
        "worst", lambda worst: display.number(worst.metrics[result.metric], unit=True)
    )
    for group in _groups(result):
        rows[f"λ_max of the Hessian, {group_name(group)}"] = _of(
            "curvature",
            lambda parts, group=group: (
                group in parts and number(parts[group].eigenvalues.eigenvalues[0])
            ),
        )
    for name, heading in _COSTS.items():
        rows[heading] = _of("cost", lambda cost, name=name: number(cost.total[name]))
    table = models_table(result, "", rows)
    kept = [row for row in table.rows if any(cell != ABSENT for cell in row[1:])]
    return Section(
        "summary",
        "Summary",
        f"Specification: {specification(result)}. Nominal is the design, with no "
        "imperfection. Yield is the share of devices that keep the specification, "
        "with how many did; its interval is Wilson's. Tolerance: the interval around 0 "
        "in which the specification is kept.",
        [Table("", table.columns, kept)],
    )


def _displays(result, metrics) -> list[Display]:
    """Returns how metrics are shown, that of the specification first."""
    names = sorted(dict.fromkeys(metrics), key=lambda name: name != result.metric)
    return [Display.of(result, name) for name in names]


def _devices(result) -> Section | None:
    devices = having(result, "devices")
    if not devices:
        return None
    tables, count = [], _device_count(result)
    keys = ("mean", "std", "median", "p05", "p95", "min", "max")
    for display in _displays(result, (n for v in devices.values() for n in v)):
        rows = {"nominal": _nominal(display)}
        for key in keys if count > 1 else ("mean",):
            rows[key if count > 1 else "the device"] = _statistic(display, key)
        if display.metric == result.metric and count > 1:
            rows |= _yield_rows(result, "yield")
        tables.append(models_table(result, display.label, rows))
    labels = next(result.models[name].labels for name in devices)
    named = [label for i, label in enumerate(labels) if label != f"device {i}"]
    names = f" ({', '.join(named)})" if 0 < len(named) <= _NAMED else ""
    if count == 1:
        meaning = f"One device{names}: the design with deviations of its own."
    else:
        meaning = (
            f"{count} devices{names}, each the design with deviations of its own. p05 "
            "and p95 are percentiles: 90 % of the devices lie between them; std is the "
            f"standard deviation. Yield: the share with {specification(result)}, with "
            "its 95 % interval (Wilson)."
        )
    return Section("devices", "Devices", meaning, tables)


def _device_count(result) -> int:
    devices = having(result, "devices").values()
    return max((len(next(iter(v.values()))) for v in devices), default=0)


def _worst(result) -> Section | None:
    worst = having(result, "worst")
    if not worst:
        return None
    rows: dict[str, Cell] = {}
    for key in dict.fromkeys(k for w in worst.values() for k in w.radius):
        rows[f"radius: {key}"] = _of(
            "worst", lambda w, key=key: number(w.radius.get(key))
        )
    for display in _displays(result, (n for w in worst.values() for n in w.metrics)):
        rows[f"{display.metric}, nominal"] = _nominal(display, unit=True)
        rows[f"{display.metric}, worst case"] = _of(
            "worst", lambda w, d=display: d.number(w.metrics.get(d.metric), unit=True)
        )
    rows["starts × steps of the search"] = _of(
        "worst", lambda w: f"{len(w.losses)} × {w.losses.shape[1] - 1}"
    )
    rows["samples the search looked at"] = _of("worst", lambda w: str(w.samples))
    return Section(
        "worst",
        "Adversarial worst case",
        "The largest loss that gradient ascent over the imperfections found, each "
        "kept within its radius: the root mean square of its deviation over its "
        "elements, in its unit. Unless `worst_case` gives it, a radius is that of the "
        "devices' deviations, or where they have none, the point of a sweep or the "
        "grid nearest to the design. The worst of N drawn devices depends on N; this "
        "does not. It is a lower bound of the true worst loss.",
        [models_table(result, "", rows)],
    )


def _sensitivity(result) -> Section | None:
    found, display = having(result, "sensitivity"), Display.of(result)
    if not found:
        return None
    tables = []
    for model, part in found.items():
        drops = sensitivity_drops(result, model)
        rows = [
            (layer, *map(display.number, row))
            for layer, row in zip(part.layers, drops, strict=True)
        ]
        tables.append(Table(model, ("layer", *map(str, part.kinds)), rows))
    ends = [bool(kind.end) for part in found.values() for kind in part.kinds]
    count = max(part.devices for part in found.values())
    mean = f"the mean over {count} {'device' if count == 1 else 'devices'}"
    if not any(ends):
        columns = f"Each figure is {mean}"
    elif all(ends):
        columns = "Each column is an end of a sweep: the design with this deviation"
    else:
        columns = (
            f"A column without a value is {mean}; a column with one is an end of a "
            "sweep: the design with this deviation"
        )
    change = "drop" if result.mode == "max" else "rise"
    return Section(
        "sensitivity",
        "Sensitivity per layer and imperfection",
        f"The {change} of {result.metric} from nominal{display.difference} where only "
        f"this kind of imperfection in only this layer is off. {columns}. Negative: it "
        "got better; -: the layer has no such imperfection.",
        tables,
    )


def sensitivity_drops(result, model: str) -> np.ndarray:
    """Returns (layers, kinds): how much worse than nominal a model's metric is."""
    part, metric = result.models[model], result.metric
    drops = part.nominal[metric] - part.sensitivity.metrics[metric]
    return drops if result.mode == "max" else -drops


def _curvature(result) -> Section | None:
    tables = []
    last = ("λ_min", "trace", "loss", "variables")
    for group in _groups(result):
        columns = {
            label: _curvature_cells(parts[group])
            for label, parts in having(result, "curvature").items()
            if group in parts
        }
        names = dict.fromkeys(name for cells in columns.values() for name in cells)
        names = [n for n in names if n not in last] + [n for n in last if n in names]
        rows = [
            (n, *(columns.get(label, {}).get(n, ABSENT) for label in result.models))
            for n in names
        ]
        tables.append(Table(group_name(group), ("", *result.models), rows))
    if not tables:
        return None
    return Section(
        "curvature",
        "Curvature of the loss",
        "Eigenvalues λ of the Hessian of the loss: how sharp the minimum is along its "
        "sharpest directions; each lies within its residual ‖Hv − λv‖ (in brackets) of "
        "an eigenvalue. Trace: their sum, estimated from random vectors, ± its "
        "standard error. Their sizes depend on the units of the variables.",
        tables,
    )


def _groups(result) -> dict[str, None]:
    """Returns the groups of variables whose curvature any model has."""
    return dict.fromkeys(g for m in result.models.values() for g in m.curvature)


def _curvature_cells(part) -> dict[str, str]:
    found, trace = part.eigenvalues, part.trace

    def cell(value, residual, converged):
        text = f"{number(value)} ({residual:.1g})"
        return text if converged else text + " not converged"

    rows = zip(found.eigenvalues, found.residuals, found.converged, strict=True)
    cells = {f"λ_{i}": cell(*row) for i, row in enumerate(rows, start=1)}
    if len(found.smallest):
        cells["λ_min"] = cell(
            found.smallest[0], found.smallest_residuals[0], found.smallest_converged[0]
        )
    cells["trace"] = f"{number(trace.trace)} ± {trace.standard_error:.2g}"
    return {**cells, "loss": number(found.loss), "variables": str(found.parameters)}


def _landscape(result) -> Section | None:
    if not having(result, "landscape"):
        return None

    def reach(part):
        spans = [part.alphas] + ([] if part.betas is None else [part.betas])
        return " × ".join(f"[{number(a[0])}, {number(a[-1])}]" for a in spans)

    texts = {
        "directions": lambda part: part.directions,
        "range along them": reach,
        "loss at the centre": lambda part: number(part.center),
        "mean rise to the edge": lambda part: number(part.rise),
        "largest loss": lambda part: number(np.nanmax(part.loss)),
    }
    rows = {name: _of("landscape", text) for name, text in texts.items()}
    return Section(
        "landscape",
        "Loss landscape",
        "The loss where the controls are moved away from where training left them, "
        "the point (0, 0), along two directions; eigenvectors are the sharpest ones. "
        "The flatter, the less an error of the controls costs.",
        [models_table(result, "", rows)],
    )


def _transfer(result) -> Section | None:
    part, display = result.transfer, Display.of(result)
    if part is None:
        return None
    rows = [
        (model, *map(display.number, row))
        for model, row in zip(part.models, part.metrics[result.metric], strict=True)
    ]
    title = f"{display.label}; columns: tested on the device of"
    others = [name for name in part.models if name not in part.devices]
    none = f" Trained on none of these devices: {', '.join(others)}." if others else ""
    return Section(
        "transfer",
        "Transfer between devices",
        "Each row is a model. Each column is the device that the model of that name "
        f"was trained on; every model is tested on it.{none}",
        [Table(title, ("", *part.devices), rows)],
    )


def _light(result) -> Section | None:
    paths = having(result, "light")
    if not paths:
        return None
    tables = [
        Table(
            model,
            ("layer", "share of the light"),
            [(name, number(share)) for name, share in path.shares.items()],
        )
        for model, path in paths.items()
    ]
    return Section(
        "light",
        "Light and masks",
        "How much of the light behind the first layer is left behind each layer, and "
        "how much of it detectors catch, on the design: the mean over the samples in "
        "the pictures, the first ones of the test data.",
        tables,
    )


def _setting(result) -> Section | None:
    lines = {str(key): words(value) for key, value in result.setting.items()}
    return Section("setting", "How it was made", "", lines=lines) if lines else None
