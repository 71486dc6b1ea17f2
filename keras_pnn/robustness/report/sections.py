"""Arrange a robustness result in sections of tables."""

from collections.abc import Callable

import numpy as np

from keras_pnn._display import Table
from keras_pnn.robustness.report.conclusion import conclusion
from keras_pnn.robustness.report.formatting import (
    ABSENT,
    Display,
    Section,
    group_name,
    having,
    interval,
    models_table,
    named_parts,
    number,
    sensitivity_drops,
    specification,
    words,
)
from keras_pnn.robustness.report.scan_sections import grid_section, sweep_section

# Most labels of devices that are listed.
_NAMED = 8
_STATISTICS = ("mean", "std", "median", "p05", "p95", "min", "max")
# Keys of `HardwareCost.total` and their headings.
_COSTS = {
    "heater_mW": "heaters (mW)",
    "power_mW": "all hardware (mW)",
    "multiplication_pJ": "energy per multiplication (pJ)",
}


def sections(result) -> list[Section]:
    """Returns the sections of a `RobustnessResult`, in the order of a report."""

    def of(attribute: str, section: Callable[..., Section]) -> list[Section]:
        parts = having(result, attribute)
        return [section(result, parts)] if parts else []

    sweeps = named_parts(result, "sweeps").items()
    groups = named_parts(result, "curvature")
    return [
        conclusion(result),
        _summary(result),
        *of("devices", _devices),
        *(sweep_section(result, name, scans) for name, scans in sweeps),
        *of("grid", grid_section),
        *of("worst", _worst),
        *of("sensitivity", _sensitivity),
        *([_curvature(result, groups)] if groups else []),
        *of("landscape", _landscape),
        *([_transfer(result, result.transfer)] if result.transfer else []),
        *of("light", _light),
        *([_setting(result.setting)] if result.setting else []),
    ]


def _yields(result, heading: str) -> dict[str, dict[str, str]]:
    """Returns the rows of the yields over the devices and their intervals."""
    share, bounds = {}, {}
    for name in having(result, "devices"):
        found = result.yield_of(name)
        share[name] = f"{100 * found.value:.1f} % ({found.passed}/{found.n})"
        bounds[name] = "{:.1f} … {:.1f} %".format(*(100 * v for v in found.interval))
    return {heading: share, f"{heading}, 95 % interval": bounds}


def _statistic(result, display: Display, key: str, unit: bool = False) -> dict:
    """Returns the row of a statistic of a metric over the devices."""
    found = {n: m.summary(display.metric) for n, m in result.models.items()}
    return {n: display.number(s[key], unit) for n, s in found.items() if s}


def _nominal(result, display: Display, unit: bool = False) -> dict[str, str]:
    return {
        name: display.number(model.nominal.get(display.metric), unit)
        for name, model in result.models.items()
    }


def _summary(result) -> Section:
    display, metric = Display.of(result), result.metric
    tail, worst = ("p05", "min") if result.mode == "max" else ("p95", "max")
    statistics = {
        "devices: mean": "mean",
        f"devices: {tail[1:].lstrip('0')}th percentile": tail,
        "devices: worst": worst,
    }
    if _device_count(result) == 1:
        statistics = {"the device": "mean"}
    rows = {f"nominal {metric}": _nominal(result, display, unit=True)}
    for heading, key in statistics.items():
        rows[heading] = _statistic(result, display, key, unit=True)
    rows |= _yields(result, f"yield at {specification(result)}")
    for scans in named_parts(result, "sweeps").values():
        axis = next(iter(scans.values())).axes[0]
        rows[f"tolerance to {axis.label}"] = {
            name: interval(result, scan)[0] for name, scan in scans.items()
        }
    rows["adversarial worst case"] = {
        name: display.number(part.metrics[metric], unit=True)
        for name, part in having(result, "worst").items()
    }
    for group, parts in named_parts(result, "curvature").items():
        rows[f"λ_max of the Hessian, {group_name(group)}"] = {
            name: number(part.eigenvalues.eigenvalues[0])
            for name, part in parts.items()
        }
    for key, heading in _COSTS.items():
        costs = having(result, "cost").items()
        rows[heading] = {name: number(cost.total[key]) for name, cost in costs}
    kept = {h: texts for h, texts in rows.items() if set(texts.values()) - {ABSENT}}
    return Section(
        "summary",
        "Summary",
        f"Specification: {specification(result)}. Nominal is the design, with no "
        "imperfection. Yield is the share of devices that keep the specification, "
        "with how many did; its interval is Wilson's. Tolerance: the interval around 0 "
        "in which the specification is kept.",
        [models_table(result, "", kept)],
    )


def _displays(result, parts) -> list[Display]:
    """Returns the displays of the metrics in parts, the specified metric first."""
    metrics = dict.fromkeys(name for part in parts for name in part)
    names = sorted(metrics, key=lambda name: name != result.metric)
    return [Display.of(result, name) for name in names]


def _devices(result, devices: dict) -> Section:
    tables, count = [], _device_count(result)
    for display in _displays(result, devices.values()):
        rows = {"nominal": _nominal(result, display)}
        if count == 1:
            rows["the device"] = _statistic(result, display, "mean")
        else:
            rows |= {key: _statistic(result, display, key) for key in _STATISTICS}
            if display.metric == result.metric:
                rows |= _yields(result, "yield")
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


def _worst(result, worst: dict) -> Section:
    rows = {
        f"radius: {key}": {n: number(w.radius.get(key)) for n, w in worst.items()}
        for key in dict.fromkeys(key for w in worst.values() for key in w.radius)
    }
    for display in _displays(result, (w.metrics for w in worst.values())):
        metric = display.metric
        rows[f"{metric}, nominal"] = _nominal(result, display, unit=True)
        rows[f"{metric}, worst case"] = {
            name: display.number(part.metrics.get(metric), unit=True)
            for name, part in worst.items()
        }
    rows["starts × steps of the search"] = {
        name: f"{len(part.losses)} × {part.losses.shape[1] - 1}"
        for name, part in worst.items()
    }
    rows["samples the search looked at"] = {n: str(w.samples) for n, w in worst.items()}
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


def _sensitivity(result, found: dict) -> Section:
    display, tables = Display.of(result), []
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


def _curvature(result, groups: dict[str, dict]) -> Section:
    tables = []
    last = ("λ_min", "trace", "loss", "variables")
    for group, parts in groups.items():
        columns = {name: _curvature_cells(part) for name, part in parts.items()}
        found = dict.fromkeys(n for cells in columns.values() for n in cells)
        headings = [n for n in found if n not in last] + [n for n in last if n in found]
        rows = {
            heading: {n: c[heading] for n, c in columns.items() if heading in c}
            for heading in headings
        }
        tables.append(models_table(result, group_name(group), rows))
    return Section(
        "curvature",
        "Curvature of the loss",
        "Eigenvalues λ of the Hessian of the loss: how sharp the minimum is along its "
        "sharpest directions; each lies within its residual ‖Hv − λv‖ (in brackets) of "
        "an eigenvalue. Trace: their sum, estimated from random vectors, ± its "
        "standard error. Their sizes depend on the units of the variables.",
        tables,
    )


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


def _landscape(result, found: dict) -> Section:
    parts = found.items()

    def reach(part):
        spans = [part.alphas] + ([] if part.betas is None else [part.betas])
        return " × ".join(f"[{number(a[0])}, {number(a[-1])}]" for a in spans)

    rows = {
        "directions": {name: part.directions for name, part in parts},
        "range along them": {name: reach(part) for name, part in parts},
        "loss at the centre": {name: number(part.center) for name, part in parts},
        "mean rise to the edge": {name: number(part.rise) for name, part in parts},
        "largest loss": {n: number(np.nanmax(part.loss)) for n, part in parts},
    }
    return Section(
        "landscape",
        "Loss landscape",
        "The loss where the controls are moved away from where training left them, "
        "the point (0, 0), along two directions; eigenvectors are the sharpest ones. "
        "The flatter, the less an error of the controls costs.",
        [models_table(result, "", rows)],
    )


def _transfer(result, part) -> Section:
    display = Display.of(result)
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


def _light(result, paths: dict) -> Section:
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


def _setting(setting: dict) -> Section:
    lines = {str(key): words(value) for key, value in setting.items()}
    return Section("setting", "How it was made", "", lines=lines)
