"""Draw the figures of a robustness result."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from keras_pnn import plotting
from keras_pnn.robustness.report.sections import sensitivity_drops
from keras_pnn.robustness.report.svg import svg
from keras_pnn.robustness.report.words import (
    Display,
    axis_label,
    chosen,
    group_name,
    having,
    number,
    specification,
    sweeps_of,
)

# Letters of a name in a picture.
_LONGEST = 40
# More points than a picture is wide would only make the file larger.
_FINE = 1200

# Section, caption, Matplotlib axes.
Drawn = Iterator[tuple[str, str, object]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Args:
        key: the key of the `Section` that it belongs to.
        caption: what it shows, for readers and for screen readers.
        svg: an `<svg>` element; its ids are those of no other picture.
    """

    key: str
    caption: str
    svg: str


def pictures(result) -> list[Picture]:
    """Returns the figures of a `RobustnessResult`.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    drawn: list[Picture] = []
    draw = (_devices, _sweeps, _grid, _sensitivity, _curvature, _landscape, _transfer)
    for part in draw:
        for key, caption, ax in part(result):
            image = svg(ax.figure, f"f{len(drawn) + 1}", caption)
            drawn.append(Picture(key, caption, image))
    return drawn


def _devices(result) -> Drawn:
    devices, display = having(result, "devices"), Display.of(result)
    if not devices:
        return
    metric = result.metric
    ax = plotting.distributions(
        {_text(n): display.scaled(v[metric]) for n, v in devices.items()},
        _text(display.label),
        spec=_spec(result),
        nominal={
            _text(n): display.scaled(result.models[n].nominal[metric]) for n in devices
        },
    )
    caption = (
        f"The {metric} of each device. Boxes: quartiles and median; whiskers: "
        "5th to 95th percentile; star: nominal."
    )
    yield "devices", caption, ax


def _sweeps(result) -> Drawn:
    display, metric = Display.of(result), result.metric
    for name, scans in sweeps_of(result).items():
        axis = next(iter(scans.values())).axes[0]
        key, label = f"sweep:{name}", _text(axis_label(axis))
        x = axis.positions
        if x is None:
            # Points that are on no line are drawn in their order.
            x, label = np.arange(len(axis)), f"point of {label}"

        def shown(values):
            return None if values is None else display.scaled(values[metric])

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
        shares = {}
        for model, scan in scans.items():
            found = scan.yields(metric, result.spec, result.mode)
            if found is not None and axis.random:
                rows = [(y.value, *y.interval) for y in found]
                shares[_text(model)] = 100 * np.array(rows).T
        if shares:
            caption = (
                f"Yield at {specification(result)} against {axis.words}, with "
                "95 % intervals."
            )
            yield key, caption, plotting.yields(x, shares, label)


def _grid(result) -> Drawn:
    grids, display = having(result, "grid"), Display.of(result)
    values = {n: display.scaled(s.central(result.metric)) for n, s in grids.items()}
    if not grids:
        return
    every = np.concatenate([np.ravel(v) for v in values.values()])
    limits = float(np.nanmin(every)), float(np.nanmax(every))
    for name, scan in grids.items():
        if any(axis.positions is None for axis in scan.axes):
            continue
        first, second = (np.argsort(axis.positions) for axis in scan.axes)
        y, x = scan.axes[0].positions[first], scan.axes[1].positions[second]
        ax = plotting.heat_map(
            x,
            y,
            values[name][np.ix_(first, second)],
            _text(axis_label(scan.axes[1])),
            _text(axis_label(scan.axes[0])),
            _text(display.label),
            level=_spec(result),
            limits=limits,
        )
        ax.set_title(_text(name))
        _mark_points(ax, x, y)
        caption = f"{name}: {result.metric} over both deviations; line: specification."
        yield "grid", caption, ax


def _mark_points(ax, x: np.ndarray, y: np.ndarray) -> None:
    """Puts the ticks of a map at measured points, ascending on each axis."""
    # About 45 letters are as wide as a map, and 16 lines as high.
    letters = 2 + max(len(number(value)) for value in x)
    for axis, points, room in ((ax.xaxis, x, letters / 45), (ax.yaxis, y, 1 / 16)):
        at = spaced(points, room)
        axis.set_ticks(at, [number(value) for value in at])


def spaced(points: np.ndarray, room: float) -> list[float]:
    """Returns those of ascending points whose labels have room, with both ends.

    Args:
        points: (n,).
        room: the least distance of two, as a share of the range.
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
    found = having(result, "curvature")
    for group in dict.fromkeys(g for parts in found.values() for g in parts):
        curves = {}
        for name, parts in found.items():
            if group not in parts or parts[group].density is None:
                continue
            density, values = parts[group].density, parts[group].eigenvalues
            step = max(1, len(density.grid) // _FINE)
            curves[_text(name)] = {
                "grid": density.grid[::step],
                "density": density.density[::step],
                "eigenvalues": [*values.smallest, *values.eigenvalues],
            }
        if curves:
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


def _spec(result) -> float:
    return float(Display.of(result).scaled(result.spec))


def _text(name: object) -> str:
    """Returns a name that Matplotlib draws as it is: no mathematics, in the legend."""
    name = str(name)
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
