"""Arrange a robustness result in sections of tables."""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_pnn.robustness.report.scan_sections import grid_section, sweep_section
from keras_pnn.robustness.report.tables import Cell, Section, Table, models_table
from keras_pnn.robustness.report.words import (
    ABSENT,
    Display,
    group_name,
    having,
    interval,
    number,
    specification,
    sweeps_of,
    words,
)


def sections(result) -> list[Section]:
    """Returns the parts that a `RobustnessResult` has, in the order of a report."""
    found = [_summary(result), _devices(result)]
    found += [sweep_section(result, *sweep) for sweep in sweeps_of(result).items()]
    found += [grid_section(result), _worst(result), _sensitivity(result)]
    rest = (_curvature, _landscape, _transfer, _setting)
    found += [section(result) for section in rest]
    return [section for section in found if section is not None]


def _yield_rows(result, heading: str) -> dict[str, Cell]:
    asked = result.metric, result.spec, result.mode

    def share(model):
        found = model.yield_of(*asked)
        return found and f"{100 * found.value:.1f} % ({found.passed}/{found.n})"

    def bounds(model):
        found = model.yield_of(*asked)
        return found and "{:.1f} … {:.1f} %".format(*(100 * v for v in found.interval))

    return {heading: share, f"{heading}, 95 % interval": bounds}


def _statistic(metric: str, key: str, display: Display, unit: bool = False) -> Cell:
    """Returns a cell with a statistic of a metric over the devices."""

    def cell(model):
        found = model.summary(metric)
        return found and display.number(found[key], unit)

    return cell


def _summary(result) -> Section:
    display, metric = Display.of(result), result.metric
    tail, worst = ("p05", "min") if result.mode == "max" else ("p95", "max")

    def statistic(key: str) -> Cell:
        return _statistic(metric, key, display, unit=True)

    def tolerance(name: str) -> Cell:
        asked = metric, result.spec, result.mode
        return lambda m: name in m.sweeps and interval(m.sweeps[name], *asked)[0]

    def sharpness(group: str) -> Cell:
        def cell(model):
            found = model.curvature.get(group)
            return found and number(found.eigenvalues.eigenvalues[0])

        return cell

    rows = {
        f"nominal {metric}": lambda m: display.number(m.nominal[metric], unit=True),
        "devices: mean": statistic("mean"),
        f"devices: {tail[1:].lstrip('0')}th percentile": statistic(tail),
        "devices: worst": statistic(worst),
        **_yield_rows(result, f"yield at {specification(result)}"),
    }
    for name, scans in sweeps_of(result).items():
        axis = next(iter(scans.values())).axes[0]
        unit = f" ({axis.unit})" if axis.unit else ""
        rows[f"tolerance to {axis.words}{unit}"] = tolerance(name)
    rows["adversarial worst case"] = lambda m: (
        m.worst and display.number(m.worst.metrics[metric], unit=True)
    )
    for group in _groups(result):
        rows[f"λ_max of the Hessian, {group_name(group)}"] = sharpness(group)
    table = models_table(result, "", rows)
    kept = tuple(row for row in table.rows if any(c != ABSENT for c in row[1:]))
    return Section(
        "summary",
        "Summary",
        f"Specification: {specification(result)}. Nominal is the design, with no "
        "imperfection. Yield is the share of devices that keep the specification, "
        "with how many did; its interval is Wilson's. Tolerance: the interval around 0 "
        "in which the specification is kept.",
        (dataclasses.replace(table, rows=kept),),
    )


def _devices(result) -> Section | None:
    devices = having(result, "devices")
    if not devices:
        return None

    tables = []
    names = dict.fromkeys(name for values in devices.values() for name in values)
    for metric in sorted(names, key=lambda name: name != result.metric):
        display = Display.of(result, metric)
        rows: dict[str, Cell] = {
            "nominal": lambda m, d=display: d.number(m.nominal.get(d.metric))
        }
        for key in ("mean", "std", "median", "p05", "p95", "min", "max"):
            rows[key] = _statistic(metric, key, display)
        if metric == result.metric:
            rows |= _yield_rows(result, "yield")
        tables.append(models_table(result, display.label, rows))
    count = max(len(next(iter(v.values()))) for v in devices.values())
    return Section(
        "devices",
        "Devices",
        f"{count} devices, each the design with deviations of its own. p05 and p95 "
        "are percentiles: 90 % of the devices lie between them; std is the standard "
        f"deviation. Yield: the share with {specification(result)}, with its 95 % "
        "interval (Wilson).",
        tuple(tables),
    )


def _worst(result) -> Section | None:
    """The adversarial worst case."""
    worst = having(result, "worst")
    if not worst:
        return None

    def cell(text: Callable) -> Cell:
        return lambda m: m.worst and text(m.worst)

    rows: dict[str, Cell] = {}
    for key in dict.fromkeys(k for w in worst.values() for k in w.radius):
        rows[f"radius: {key}"] = cell(lambda w, key=key: number(w.radius.get(key)))
    names = dict.fromkeys(k for w in worst.values() for k in w.metrics)
    for metric in sorted(names, key=lambda name: name != result.metric):
        show = Display.of(result, metric).number
        rows[f"{metric}, nominal"] = lambda m, n=metric, show=show: show(
            m.nominal.get(n), unit=True
        )
        rows[f"{metric}, worst case"] = cell(
            lambda w, n=metric, show=show: show(w.metrics.get(n), unit=True)
        )
    rows["starts × steps of the search"] = cell(
        lambda w: "{} × {}".format(*np.subtract(np.shape(w.losses), (0, 1)))
    )
    rows["samples the search looked at"] = cell(lambda w: str(w.samples))
    return Section(
        "worst",
        "Adversarial worst case",
        "The largest loss that gradient ascent over the imperfections found, each "
        "kept within its radius: the root mean square of its deviation over its "
        "elements, in its unit. The worst of N drawn devices depends on N; this does "
        "not. It is a lower bound of the true worst loss.",
        (models_table(result, "", rows),),
    )


def _sensitivity(result) -> Section | None:
    """Each kind of imperfection in each layer alone."""
    found, display = having(result, "sensitivity"), Display.of(result)
    if not found:
        return None
    tables = []
    for model, part in found.items():
        drops = sensitivity_drops(result, model)
        rows = tuple(
            (layer, *(display.number(value) for value in row))
            for layer, row in zip(part.layers, drops, strict=True)
        )
        tables.append(Table(model, ("layer", *map(str, part.kinds)), rows))
    kinds = [kind for part in found.values() for kind in part.kinds]
    ends = [kind for kind in kinds if kind.end]
    count = max(part.devices for part in found.values())
    mean = f"the mean over {count} {'device' if count == 1 else 'devices'}"
    if not ends:
        columns = f"Each figure is {mean}"
    elif len(ends) == len(kinds):
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
        tuple(tables),
    )


def sensitivity_drops(result, model: str) -> np.ndarray:
    """Returns (layers, kinds): how much worse than nominal a model's metric is."""
    part, metric = result.models[model], result.metric
    drops = part.nominal[metric] - np.asarray(part.sensitivity.metrics[metric])
    return drops if result.mode == "max" else -drops


def _curvature(result) -> Section | None:
    """Eigenvalues and trace of the Hessian."""
    tables = []
    for group in _groups(result):
        parts = [
            m.curvature[group] for m in result.models.values() if group in m.curvature
        ]
        last = ("λ_min", "trace", "loss", "variables")
        names = dict.fromkeys(name for part in parts for name in _curvature_cells(part))
        names = [n for n in names if n not in last] + [n for n in last if n in names]
        rows = {name: _curvature_cell(group, name) for name in names}
        tables.append(models_table(result, group_name(group), rows))
    if not tables:
        return None
    return Section(
        "curvature",
        "Curvature of the loss",
        "Eigenvalues λ of the Hessian of the loss: how sharp the minimum is along its "
        "sharpest directions; each lies within its residual ‖Hv − λv‖ (in brackets) of "
        "an eigenvalue. Trace: their sum, estimated from random vectors, ± its "
        "standard error. Their sizes depend on the units of the variables.",
        tuple(tables),
    )


def _groups(result) -> dict[str, None]:
    """Returns the groups of variables whose curvature any model has."""
    return dict.fromkeys(g for m in result.models.values() for g in m.curvature)


def _curvature_cell(group: str, name: str) -> Cell:
    def cell(model):
        part = model.curvature.get(group)
        return part and _curvature_cells(part).get(name)

    return cell


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
    if trace is not None:
        cells["trace"] = f"{number(trace.trace)} ± {trace.standard_error:.2g}"
    return {**cells, "loss": number(found.loss), "variables": str(found.parameters)}


def _landscape(result) -> Section | None:
    """The loss around the controls."""
    if not having(result, "landscape"):
        return None

    def reach(part):
        spans = [part.alphas] + ([] if part.betas is None else [part.betas])
        return " × ".join(f"[{number(a[0])}, {number(a[-1])}]" for a in spans)

    def cell(text: Callable) -> Cell:
        return lambda m: m.landscape and text(m.landscape)

    rows = {
        "directions": cell(lambda part: part.directions),
        "range along them": cell(reach),
        "loss at the centre": cell(lambda part: number(part.center)),
        "mean rise to the edge": cell(lambda part: number(part.rise)),
        "largest loss": cell(lambda part: number(np.nanmax(part.loss))),
    }
    return Section(
        "landscape",
        "Loss landscape",
        "The loss where the controls are moved away from where training left them, "
        "the point (0, 0), along two directions; eigenvectors are the sharpest ones. "
        "The flatter, the less an error of the controls costs.",
        (models_table(result, "", rows),),
    )


def _transfer(result) -> Section | None:
    """Models tested on the devices that some of them were trained on."""
    part, display = result.transfer, Display.of(result)
    if part is None:
        return None
    rows = tuple(
        (model, *(display.number(value) for value in row))
        for model, row in zip(part.models, part.metrics[result.metric], strict=True)
    )
    title = f"{display.label}; columns: tested on the device of"
    others = [name for name in part.models if name not in part.devices]
    none = f" Trained on none of these devices: {', '.join(others)}." if others else ""
    return Section(
        "transfer",
        "Transfer between devices",
        "Each row is a model. Each column is the device that the model of that name "
        f"was trained on; every model is tested on it.{none}",
        (Table(title, ("", *part.devices), rows),),
    )


def _setting(result) -> Section | None:
    """How the report was made."""
    if not result.setting:
        return None
    lines = {str(key): words(value) for key, value in result.setting.items()}
    return Section("setting", "How it was made", "", lines=lines)
