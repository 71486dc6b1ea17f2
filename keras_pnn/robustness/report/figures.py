"""The pictures of a robustness report, as SVG that can stand within one page."""

import dataclasses
import io
import re
from xml.etree import ElementTree

import numpy as np

from keras_pnn import plotting
from keras_pnn.robustness.report.parts import sensitivity_drops
from keras_pnn.robustness.report.words import (
    Display,
    axis_label,
    chosen,
    group_name,
    having,
    number,
    plain_name,
    specification,
)

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}"
_URL = re.compile(r"url\(#([^)]+)\)")
# Letters of a name in a picture.
_LONGEST = 40
# Pixels of the page per point of a figure: two figures stand beside each other on a
# page that is 1100 wide.
_PIXELS = 1.15
# More points than a picture is wide would only make the file larger.
_FINE = 1200


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Args:
        key: the section that it belongs to, as in `report_sections`.
        caption: what it shows, for readers and for screen readers.
        svg: an `<svg>` element; its ids are those of no other picture.
    """

    key: str
    caption: str
    svg: str


def pictures(result) -> list[Picture]:
    """Returns a report's figures.

    Args:
        result: a `RobustnessResult`.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    drawn = []
    for key, caption, draw in _plans(result):
        figure = draw().figure
        drawn.append(Picture(key, caption, svg(figure, f"f{len(drawn) + 1}", caption)))
    return drawn


def svg(figure, prefix: str, caption: str) -> str:
    """Returns a Matplotlib figure as an SVG element for an HTML page.

    Args:
        figure: a Matplotlib figure.
        prefix: what its ids start with; another for each figure of a page.
        caption: its text for screen readers.

    Returns:
        The element, with text as text, without prolog, metadata, namespaces and
        style sheets, the same for the same figure.
    """
    import matplotlib

    stream = io.StringIO()
    options = {"svg.hashsalt": prefix, "svg.fonttype": "none"}
    with matplotlib.rc_context(options):
        figure.savefig(stream, format="svg")
    root = ElementTree.fromstring(stream.getvalue())
    _clean(root)
    _rename(root, prefix)
    width, height = (float(v) for v in root.get("viewBox").split()[2:])
    for name in ("version", "width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", caption)
    # The style sheet that `_clean` removes would have held for the whole page.
    root.set(
        "style",
        "stroke-linejoin:round;stroke-linecap:butt;"
        f"width:{_PIXELS * width:.0f}px;aspect-ratio:{width:g}/{height:g}",
    )
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    for name in list(element.attrib):
        if name.startswith(_LINK):
            element.set(name.removeprefix(_LINK), element.attrib.pop(name))
    for child in list(element):
        if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
            element.remove(child)
        else:
            _clean(child)


def _rename(root, prefix: str) -> None:
    """Gives ids a prefix where something refers to them, and removes the others."""
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "href" and value.startswith("#"):
                used.add(value[1:])
                element.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                used.update(_URL.findall(value))
                element.set(key, _URL.sub(rf"url(#{prefix}-\1)", value))
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}-{name}")


def _plans(result):
    """Yields (section, caption, function that draws it)."""
    yield from _device_plans(result)
    names = dict.fromkeys(n for m in result.models.values() for n in m.sweeps)
    for name in names:
        yield from _sweep_plans(result, name)
    yield from _grid_plans(result)
    yield from _sensitivity_plans(result)
    yield from _curvature_plans(result)
    yield from _landscape_plans(result)
    yield from _transfer_plans(result)


def _spec(result) -> float:
    return float(Display.of(result).scaled(result.spec))


def _device_plans(result):
    devices, display = having(result, "devices"), Display.of(result)
    if not devices:
        return
    values = {n: display.scaled(v[result.metric]) for n, v in devices.items()}
    nominal = {
        n: display.scaled(result.models[n].nominal[result.metric]) for n in devices
    }

    def draw():
        return plotting.distributions(
            _literal(values),
            _text(display.label),
            spec=_spec(result),
            nominal=_literal(nominal),
        )

    caption = (
        f"The {result.metric} of each device. Boxes: quartiles and median; whiskers: "
        "5th to 95th percentile; star: nominal."
    )
    yield "devices", caption, draw


def _sweep_plans(result, name: str):
    display, metric = Display.of(result), result.metric
    scans = {n: m.sweeps[name] for n, m in result.models.items() if name in m.sweeps}
    axis = next(iter(scans.values())).axes[0]
    key, label = f"sweep:{name}", _text(axis_label(axis))
    # Points that are on no line are drawn in their order.
    x = axis.positions if axis.positions is not None else np.arange(len(axis))
    label = label if axis.positions is not None else f"point of {label}"

    def part(values):
        return None if values is None else display.scaled(values[metric])

    curves = {
        n: {"design": part(s.design), "devices": part(s.devices)}
        for n, s in scans.items()
    }

    def draw():
        return plotting.bands(
            x,
            _literal(curves),
            label,
            _text(display.label),
            spec=_spec(result),
            worst="min" if result.mode == "max" else "max",
        )

    yield key, f"The {metric} against {plain_name(name)}.", draw
    shares = {}
    for model, scan in scans.items():
        found = scan.yields(metric, result.spec, result.mode)
        if found is not None and axis.random:
            rows = [(y.value, *y.interval) for y in found]
            shares[model] = 100 * np.array(rows).T

    def draw_yields():
        return plotting.yields(x, _literal(shares), label)

    if shares:
        caption = (
            f"Yield at {specification(result)} against {plain_name(name)}, with "
            "95 % intervals."
        )
        yield key, caption, draw_yields


def _grid_plans(result):
    grids, display = having(result, "grid"), Display.of(result)
    values = {n: display.scaled(s.central(result.metric)) for n, s in grids.items()}
    if not grids:
        return
    every = np.concatenate([np.ravel(v) for v in values.values()])
    limits = float(np.nanmin(every)), float(np.nanmax(every))
    for name, scan in grids.items():
        if any(axis.positions is None for axis in scan.axes):
            continue

        def draw(name=name, scan=scan):
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
            return ax

        caption = f"{name}: {result.metric} over both deviations; line: specification."
        yield "grid", caption, draw


def _mark_points(ax, x, y) -> None:
    """Puts a map's ticks at points that were measured.

    Args:
        ax: a Matplotlib axis.
        x, y: ascending points, (columns,) and (rows,).
    """
    # About 45 letters are as wide as a map, and 16 lines as high.
    letters = 2 + max(len(number(value)) for value in x)
    for axis, points, room in ((ax.xaxis, x, letters / 45), (ax.yaxis, y, 1 / 16)):
        at = spaced(points, room)
        axis.set_ticks(at, [number(value) for value in at])


def spaced(points, room: float) -> list[float]:
    """Those of ascending points whose labels have room, with both ends.

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


def _sensitivity_plans(result):
    for name, part in having(result, "sensitivity").items():
        display = Display.of(result)
        drops = display.scaled(sensitivity_drops(result, name))
        change = "drop" if result.mode == "max" else "rise"
        unit = display.difference.replace("percentage ", "")

        def draw(name=name, part=part, drops=drops, change=change, unit=unit):
            return plotting.matrices(
                {_text(name): drops},
                "imperfection",
                "layer",
                unit=_text(f"{change} of {result.metric}{unit}"),
                rows=[_text(layer) for layer in part.layers],
                columns=[_text(kind) for kind in part.kinds],
                cmap="cividis_r",
            )

        caption = f"{name}: {change} of {result.metric} per layer and imperfection."
        if np.isfinite(drops).any():
            yield "sensitivity", caption, draw


def _curvature_plans(result):
    found = having(result, "curvature")
    for group in dict.fromkeys(g for parts in found.values() for g in parts):
        curves = {}
        for name, parts in found.items():
            if group not in parts or parts[group].density is None:
                continue
            density, values = parts[group].density, parts[group].eigenvalues
            step = max(1, len(density.grid) // _FINE)
            curves[name] = {
                "grid": density.grid[::step],
                "density": density.density[::step],
                "eigenvalues": [*values.smallest, *values.eigenvalues],
            }

        def draw(group=group, curves=curves):
            ax = plotting.density(_literal(curves))
            ax.set_title(f"Hessian over {group_name(group)}")
            return ax

        caption = (
            f"Density of the Hessian's eigenvalues over {group_name(group)}, "
            "broadened; markers: the computed eigenvalues."
        )
        if curves:
            yield "curvature", caption, draw


def _landscape_plans(result):
    found = having(result, "landscape")
    lines = {n: part for n, part in found.items() if part.betas is None}
    planes = {n: part for n, part in found.items() if part.betas is not None}
    for name, part in lines.items():

        def draw_line(name=name, part=part):
            curve = {_text(name): part.loss}
            return plotting.sweep(part.alphas, curve, "along direction 1", "loss")

        yield "landscape", f"{name}: the loss along one direction.", draw_line
    if planes:
        parts = {n: (p.alphas, p.betas, p.loss) for n, p in planes.items()}

        def draw():
            first, second = "along direction 1", "along direction 2"
            return plotting.landscapes(_literal(parts), first, second)

        caption = "The loss around the controls, as a map and as a surface."
        yield "landscape", caption, draw


def _transfer_plans(result):
    part, display = result.transfer, Display.of(result)
    if part is None:
        return

    def draw():
        return plotting.matrices(
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
    yield "transfer", caption, draw


def _text(name: str) -> str:
    """A name that Matplotlib draws as it is: no mathematics, and in the legend."""
    name = str(name)
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _literal(items: dict) -> dict:
    return {_text(name): value for name, value in items.items()}
