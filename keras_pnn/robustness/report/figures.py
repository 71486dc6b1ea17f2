"""Draw the figures of a robustness result."""

from collections.abc import Iterator

import numpy as np

from keras_pnn import plotting
from keras_pnn.robustness.report.formatting import (
    Display,
    chosen,
    group_name,
    having,
    named_parts,
    number,
    sensitivity_drops,
    specification,
)

# Most letters of a name in a figure.
_LONGEST = 40
# Most points of a curve: more than its width in pixels would only enlarge the file.
_FINE = 1200

# The key of a figure's `Section`, its caption, its Matplotlib axes.
Drawn = Iterator[tuple[str, str, object]]


def figures(result) -> Drawn:
    """Yields the figures of a `RobustnessResult`."""
    parts = (_devices, _sweeps, _grid, _sensitivity, _curvature, _landscape)
    for drawn in (*parts, _transfer, _light):
        yield from drawn(result)


def _devices(result) -> Drawn:
    devices, display = having(result, "devices"), Display.of(result)
    if not devices:
        return
    metric = result.metric
    nominal = {n: display.scaled(result.models[n].nominal[metric]) for n in devices}
    ax = plotting.distributions(
        {_text(n): display.scaled(v[metric]) for n, v in devices.items()},
        _text(display.label),
        spec=_spec(result),
        nominal={_text(n): value for n, value in nominal.items()},
    )
    caption = (
        f"The {metric} of each device. Boxes: quartiles and median; whiskers: "
        "5th to 95th percentile; star: nominal."
    )
    yield "devices", caption, ax


def _sweeps(result) -> Drawn:
    display, metric = Display.of(result), result.metric

    def shown(values):
        return None if values is None else display.scaled(values[metric])

    for name, scans in named_parts(result, "sweeps").items():
        axis = next(iter(scans.values())).axes[0]
        key, label, x = f"sweep:{name}", _text(axis.line_label), axis.positions
        if x is None:
            # Points that do not lie on one line are drawn in their order.
            x, label = np.arange(len(axis)), f"point of {label}"
        ax = plotting.bands(
            x,
            {
                _text(n): {"design": shown(s.design), "devices": shown(s.devices)}
                for n, s in scans.items()
            },
            label,
            _text(display.label),
            spec=_spec(result),
            worst="min" if result.mode == "max" else "max",
        )
        yield key, f"The {metric} against {axis.words}.", ax
        if axis.random:
            shares = {}
            for model, scan in scans.items():
                found = scan.yields(metric, result.spec, result.mode)
                rows = [(y.value, *y.interval) for y in found]
                shares[_text(model)] = 100 * np.array(rows).T
            caption = (
                f"Yield at {specification(result)} against {axis.words}, with "
                "95 % intervals."
            )
            yield key, caption, plotting.yields(x, shares, label)


def _grid(result) -> Drawn:
    grids, display = having(result, "grid"), Display.of(result)
    if not grids:
        return
    values = {n: display.scaled(s.central(result.metric)) for n, s in grids.items()}
    every = np.concatenate([np.ravel(v) for v in values.values()])
    limits = float(np.nanmin(every)), float(np.nanmax(every))
    for name, scan in grids.items():
        if any(axis.positions is None for axis in scan.axes):
            continue
        y, x = (np.sort(axis.positions) for axis in scan.axes)
        ax = plotting.heat_map(
            scan.axes[1].positions,
            scan.axes[0].positions,
            values[name],
            _text(scan.axes[1].line_label),
            _text(scan.axes[0].line_label),
            _text(display.label),
            level=_spec(result),
            limits=limits,
        )
        ax.set_title(_text(name))
        # About 45 letters fill the width of a map, and 16 lines its height.
        room = (2 + max(len(number(value)) for value in x)) / 45
        for side, points, least in ((ax.xaxis, x, room), (ax.yaxis, y, 1 / 16)):
            at = spaced(points, least)
            side.set_ticks(at, [number(value) for value in at])
        caption = f"{name}: {result.metric} over both deviations; line: specification."
        yield "grid", caption, ax


def spaced(points: np.ndarray, room: float) -> list[float]:
    """Selects from ascending points those whose labels have room, with both ends.

    `room` is the smallest distance between two labels, as a share of the range.
    """
    few = [float(point) for point in points[chosen(len(points))]]
    least, kept = room * (few[-1] - few[0]), few[:1]
    for point in few[1:-1]:
        if min(point - kept[-1], few[-1] - point) >= least:
            kept.append(point)
    return kept + few[1:][-1:]


def _sensitivity(result) -> Drawn:
    display = Display.of(result)
    change = "drop" if result.mode == "max" else "rise"
    unit = display.difference.replace("percentage ", "")
    for name, part in having(result, "sensitivity").items():
        drops = display.scaled(sensitivity_drops(result, name))
        if not np.isfinite(drops).any():
            continue
        ax = plotting.matrices(
            {_text(name): drops},
            "imperfection",
            "layer",
            unit=_text(f"{change} of {result.metric}{unit}"),
            rows=[_text(layer) for layer in part.layers],
            columns=[_text(kind) for kind in part.kinds],
            cmap="cividis_r",
        )
        caption = f"{name}: {change} of {result.metric} per layer and imperfection."
        yield "sensitivity", caption, ax


def _curvature(result) -> Drawn:
    for group, parts in named_parts(result, "curvature").items():
        curves = {}
        for name, part in parts.items():
            density, values = part.density, part.eigenvalues
            step = max(1, len(density.grid) // _FINE)
            curves[_text(name)] = {
                "grid": density.grid[::step],
                "density": density.density[::step],
                "eigenvalues": [*values.smallest, *values.eigenvalues],
            }
        ax = plotting.density(curves)
        ax.set_title(f"Hessian over {group_name(group)}")
        caption = (
            f"Density of the Hessian's eigenvalues over {group_name(group)}, "
            "broadened; markers: the computed eigenvalues."
        )
        yield "curvature", caption, ax


def _landscape(result) -> Drawn:
    planes = {}
    first, second = "along direction 1", "along direction 2"
    for name, part in having(result, "landscape").items():
        if part.betas is not None:
            planes[_text(name)] = part.alphas, part.betas, part.loss
            continue
        ax = plotting.sweep(part.alphas, {_text(name): part.loss}, first, "loss")
        yield "landscape", f"{name}: the loss along one direction.", ax
    if planes:
        caption = "The loss around the controls, as a map and as a surface."
        yield "landscape", caption, plotting.landscapes(planes, first, second)


def _transfer(result) -> Drawn:
    part, display = result.transfer, Display.of(result)
    if part is None:
        return
    ax = plotting.matrices(
        {"": display.scaled(part.metrics[result.metric])},
        "tested on the device of",
        "model",
        unit=_text(display.label),
        rows=[_text(name) for name in part.models],
        columns=[_text(name) for name in part.devices],
    )
    caption = (
        f"The {result.metric} of each model on each device that a model was trained on."
    )
    yield "transfer", caption, ax


def _light(result) -> Drawn:
    for name, path in having(result, "light").items():
        parts = (path.light, path.phases, path.amplitudes)
        shown = [
            {_text(n): part[n] for n in np.array(list(part))[chosen(len(part))]}
            for part in parts
        ]
        ax = plotting.planes(*shown, regions=path.regions)
        caption = (
            f"{name}: masks, and the light of {len(next(iter(path.light.values())))} "
            "samples behind each layer, every picture scaled to its brightest pixel."
        )
        if any(len(part) < len(all_) for part, all_ in zip(shown, parts, strict=True)):
            caption += " Some planes are left out."
        if path.regions:
            caption += " Frames: detectors."
        yield "light", caption, ax


def _spec(result) -> float:
    return float(Display.of(result).scaled(result.spec))


def _text(name: object) -> str:
    """Returns a short name that Matplotlib shows in the legend, without mathematics."""
    name = str(name)
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
