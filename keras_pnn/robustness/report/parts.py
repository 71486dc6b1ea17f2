"""The sections of a robustness report beyond devices and sweeps."""

import numpy as np

from keras_pnn.robustness.report.words import (
    ABSENT,
    Display,
    Section,
    Table,
    axis_label,
    chosen,
    group_name,
    having,
    model_table,
    number,
    plain_name,
    points,
    specification,
    words,
)


def grid_section(result) -> Section | None:
    """Both deviations of a grid at once."""
    grids, display = having(result, "grid"), Display.of(result)
    if not grids:
        return None
    tables = []
    for model, scan in grids.items():
        first, second = scan.axes
        rows_at, columns_at = chosen(len(first)), chosen(len(second))
        values = scan.central(result.metric)
        rows = tuple(
            (points(first)[i], *(display.number(values[i, j]) for j in columns_at))
            for i in rows_at
        )
        heads = tuple(points(second)[j] for j in columns_at)
        title = f"{model}: {display.label}; columns: {axis_label(second)}"
        tables.append(Table(title, (axis_label(first), *heads), rows))
    devices = any(scan.devices is not None for scan in grids.values())
    return Section(
        "grid",
        "Grid: "
        + " × ".join(plain_name(a.name) for a in next(iter(grids.values())).axes),
        f"{'The mean over the devices' if devices else 'The design'} with both "
        f"deviations at once. The line in the map is {specification(result)}.",
        tuple(tables),
    )


def worst_section(result) -> Section | None:
    """The adversarial worst case."""
    worst = having(result, "worst")
    if not worst:
        return None
    rows = {}
    for key in dict.fromkeys(k for w in worst.values() for k in w.radius):
        rows[f"radius: {key}"] = [
            number(worst[n].radius.get(key)) if n in worst else ABSENT
            for n in result.models
        ]
    names = dict.fromkeys(k for w in worst.values() for k in w.metrics)
    for metric in sorted(names, key=lambda name: name != result.metric):
        display = Display.of(result, metric)
        rows[f"{metric}, nominal"] = [
            display.number(m.nominal.get(metric), unit=True)
            for m in result.models.values()
        ]
        rows[f"{metric}, worst case"] = [
            display.number(worst[n].metrics.get(metric), unit=True)
            if n in worst
            else ABSENT
            for n in result.models
        ]
    rows["starts × steps of the search"] = [
        "{} × {}".format(*(np.array(worst[n].losses.shape) - (0, 1)))
        if n in worst
        else ABSENT
        for n in result.models
    ]
    rows["samples the search looked at"] = [
        str(worst[n].samples) if n in worst else ABSENT for n in result.models
    ]
    return Section(
        "worst",
        "Adversarial worst case",
        "The largest loss that gradient ascent over the imperfections found, each "
        "kept within its radius: the root mean square of its deviation over its "
        "elements, in its unit. The worst of N drawn devices depends on N; this does "
        "not. It is a lower bound of the true worst loss.",
        (model_table(result, "", rows),),
    )


def sensitivity_section(result) -> Section | None:
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
        tables.append(Table(model, ("layer", *part.kinds), rows))
    change = "drop" if result.mode == "max" else "rise"
    return Section(
        "sensitivity",
        "Sensitivity per layer and imperfection",
        f"The {change} of {result.metric} from nominal{display.difference} where only "
        "this kind of imperfection in only this layer is off. "
        f"{_sensitivity_columns(found.values())}. Negative: it got better; -: the "
        "layer has no such imperfection.",
        tuple(tables),
    )


def _sensitivity_columns(parts) -> str:
    """What the columns of sensitivities are: devices, ends of sweeps, or both."""
    kinds = [kind for part in parts for kind in part.kinds]
    # An end of a sweep is named with its value, "temperature = 2".
    ends = [kind for kind in kinds if " = " in kind]
    count = max(part.devices for part in parts)
    mean = f"the mean over {count} {'device' if count == 1 else 'devices'}"
    if not ends:
        return f"Each figure is {mean}"
    if len(ends) == len(kinds):
        return "Each column is an end of a sweep: the design with this deviation"
    return (
        f"A column without a value is {mean}; a column with one is an end of a sweep: "
        "the design with this deviation"
    )


def sensitivity_drops(result, model: str) -> np.ndarray:
    """(layers, kinds): how much worse than nominal a model's metric is.

    Args:
        result: a `RobustnessResult`.
        model: the name of a model that has a sensitivity.
    """
    part = result.models[model]
    drops = part.nominal[result.metric] - np.asarray(
        part.sensitivity.metrics[result.metric]
    )
    return drops if result.mode == "max" else -drops


def curvature_section(result) -> Section | None:
    """Eigenvalues and trace of the Hessian."""
    found = having(result, "curvature")
    if not found:
        return None
    tables = []
    for group in dict.fromkeys(g for parts in found.values() for g in parts):
        columns = {
            name: _curvature_cells(parts[group])
            for name, parts in found.items()
            if group in parts
        }
        names = dict.fromkeys(key for cells in columns.values() for key in cells)
        names = sorted(names, key=_curvature_order)
        rows = {
            key: [columns.get(n, {}).get(key, ABSENT) for n in result.models]
            for key in names
        }
        tables.append(model_table(result, group_name(group), rows))
    return Section(
        "curvature",
        "Curvature of the loss",
        "Eigenvalues λ of the Hessian of the loss: how sharp the minimum is along its "
        "sharpest directions; each lies within its residual ‖Hv − λv‖ (in brackets) of "
        "an eigenvalue. Trace: their sum, estimated from random vectors, ± its "
        "standard error. Their sizes depend on the units of the variables.",
        tuple(tables),
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
    if trace is not None:
        cells["trace"] = f"{number(trace.trace)} ± {trace.standard_error:.2g}"
    cells["loss"] = number(found.loss)
    cells["variables"] = str(found.parameters)
    return cells


def _curvature_order(key: str) -> tuple:
    rest = ("λ_min", "trace", "loss", "variables")
    return (1, rest.index(key)) if key in rest else (0, int(key[2:]))


def landscape_section(result) -> Section | None:
    """The loss around the controls."""
    found = having(result, "landscape")
    if not found:
        return None

    def reach(part):
        spans = [part.alphas] + ([] if part.betas is None else [part.betas])
        return " × ".join(f"[{number(a[0])}, {number(a[-1])}]" for a in spans)

    cells = {
        "directions": lambda part: part.directions,
        "range along them": reach,
        "loss at the centre": lambda part: number(part.center),
        "mean rise to the edge": lambda part: number(part.rise),
        "largest loss": lambda part: number(np.nanmax(part.loss)),
    }
    rows = {
        key: [function(found[n]) if n in found else ABSENT for n in result.models]
        for key, function in cells.items()
    }
    return Section(
        "landscape",
        "Loss landscape",
        "The loss where the controls are moved away from where training left them, "
        "the point (0, 0), along two directions; eigenvectors are the sharpest ones. "
        "The flatter, the less an error of the controls costs.",
        (model_table(result, "", rows),),
    )


def transfer_section(result) -> Section | None:
    """Models tested on the devices that some of them were trained on."""
    part, display = result.transfer, Display.of(result)
    if part is None:
        return None
    values = np.asarray(part.metrics[result.metric])
    rows = tuple(
        (model, *(display.number(value) for value in row))
        for model, row in zip(part.models, values, strict=True)
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


def setting_section(result) -> Section | None:
    """How the report was made."""
    if not result.setting:
        return None
    lines = {str(key): words(value) for key, value in result.setting.items()}
    return Section("setting", "How it was made", "", lines=lines)
