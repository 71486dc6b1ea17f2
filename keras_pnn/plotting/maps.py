"""Draw maps in colours or grey: images, matrices, heat maps, loss landscapes."""

from typing import TYPE_CHECKING

import numpy as np

from keras_pnn.plotting.axes import axis_of, new_figure, slanted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def images(pictures: dict, ax=None):
    """Draws greyscale pictures below each other; 0 is black and 1 is white.

    Args:
        pictures: name → (height, width), values from 0 to 1, all of one width.

    Returns:
        A Matplotlib axis.

    Example:

    >>> ax = images({"mask": np.eye(8)})
    """
    ax = axis_of(ax)
    arrays = [np.asarray(p) for p in pictures.values()]
    height, width = arrays[0].shape
    gap = np.full((max(2, height // 12), width), np.nan)
    stack, ticks = np.empty((0, width)), []
    for array in arrays:
        ticks.append(len(stack) + len(array) / 2)
        stack = np.concatenate([stack, array, gap])
    ax.imshow(stack[: -len(gap)], cmap="gray", vmin=0, vmax=1)
    ax.set_yticks(ticks, list(pictures))
    ax.set(xlabel="column (pixels)")
    return ax


def matrices(
    values: dict,
    xlabel: str,
    ylabel: str,
    unit: str = "%",
    rows=None,
    columns=None,
    cmap: str = "viridis",
):
    """Draws matrices beside each other in one colour scale, with their values.

    Args:
        values: name → (rows, columns), all of one shape; NaN is left empty.
        rows, columns: names of rows and columns. Default: 0, 1, …
        cmap: a Matplotlib colour map.

    Returns:
        The last axis.

    Example:

    >>> ax = matrices({"transfer": [[97, 91], [90, 96]]}, "tested on", "trained on")
    """
    arrays = [np.asarray(v, "float64") for v in values.values()]
    height, width = arrays[0].shape
    # Widths of names and titles, in inches.
    beside = 0.085 * max((len(str(name)) for name in rows or ()), default=0)
    above = 0.11 * max(len(str(name)) for name in values)
    figure = new_figure(
        1.0 + len(values) * max(3.2, 0.7 * width + beside, above + beside),
        max(3.4, 1.2 + 0.4 * height),
    )
    axes = figure.subplots(1, len(values), squeeze=False)[0]
    finite = np.concatenate([a[np.isfinite(a)] for a in arrays])
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    for ax, name, array in zip(axes, values, arrays, strict=True):
        picture = ax.imshow(array, vmin=low, vmax=high, cmap=cmap, aspect="auto")
        for (row, column), value in np.ndenumerate(array):
            if not np.isfinite(value):
                continue
            red, green, blue, _ = picture.to_rgba(value)
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            ax.text(
                column,
                row,
                # Percentages to a tenth; losses are often far below 1.
                f"{value:.1f}" if high >= 10 else f"{value:.2g}",
                ha="center",
                va="center",
                color="black" if light else "white",
            )
        ax.set(title=name, xlabel=xlabel, ylabel=ylabel)
        ax.set_xticks(range(width), columns)
        ax.set_yticks(range(height), rows)
        if columns is not None and max(len(str(name)) for name in columns) > 6:
            slanted(ax)
    figure.colorbar(picture, ax=list(axes), label=unit)
    return axes[-1]


def heat_map(
    x,
    y,
    values,
    xlabel: str,
    ylabel: str,
    unit: str,
    level=None,
    limits=None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a metric over two imperfections.

    Args:
        x: (columns,), different values in any order.
        y: (rows,), likewise.
        values: (rows, columns).
        level: value of a contour, such as the specification; or `None`.
        limits: ends of the colour scale. Default: those of `values`.

    Returns:
        A Matplotlib axis.

    Example:

    >>> values = [[90, 95, 91], [85, 92, 84]]
    >>> ax = heat_map([-1, 0, 1], [0, 2], values, "K", "px", "accuracy (%)", level=90)
    """
    ax = axis_of(ax)
    columns, rows = np.argsort(x), np.argsort(y)
    x, y = np.asarray(x)[columns], np.asarray(y)[rows]
    values = np.asarray(values, "float64")[np.ix_(rows, columns)]
    low, high = limits if limits is not None else (None, None)
    colors = {"cmap": "viridis", "vmin": low, "vmax": high}
    # Edges in the colour of their cell hide the seams between cells.
    edges = {"edgecolors": "face", "linewidth": 0.4}
    mesh = ax.pcolormesh(_edges(x), _edges(y), values, **colors, **edges)
    bar = ax.figure.colorbar(mesh, ax=ax, label=unit)
    inside = level is not None and np.nanmin(values) < level < np.nanmax(values)
    if inside and min(values.shape) > 1:
        ax.contour(x, y, values, [level], colors="white", linewidths=3)
        ax.contour(x, y, values, [level], colors="black", linewidths=1.4)
        bar.ax.axhline(level, color="black", linewidth=1.4)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def landscapes(values: dict, xlabel: str, ylabel: str):
    """Draws losses over two directions: a contour map and a surface for each.

    Args:
        values: name → (alphas (n,), betas (m,), loss (n, m)); the maps share one
            scale of colours and heights.
        xlabel: the first direction.
        ylabel: the second.

    Returns:
        The last axis.

    Example:

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = axis[:, None] ** 2 + axis**2
    >>> ax = landscapes({"plain": (axis, axis, bowl)}, "α", "β")
    """
    figure = new_figure(4.4 * len(values) + 0.8, 7.6)
    from matplotlib.ticker import MaxNLocator

    losses = [np.asarray(loss, "float64") for _, _, loss in values.values()]
    finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    low, high = finite.min(), finite.max()
    high = high if high > low else low + 1.0
    levels = np.linspace(low, high, 17)
    maps = []
    for index, (name, (alphas, betas, loss)) in enumerate(values.items(), start=1):
        ax = figure.add_subplot(2, len(values), index)
        masked = np.ma.masked_invalid(np.transpose(loss))
        filled = ax.contourf(alphas, betas, masked, levels, cmap="viridis")
        ax.contour(alphas, betas, masked, levels, colors="black", linewidths=0.3)
        ax.plot(0, 0, "w+", markersize=9, markeredgewidth=1.6)
        ax.set(title=name, xlabel=xlabel, ylabel=ylabel)
        maps.append(ax)
        ax = figure.add_subplot(2, len(values), len(values) + index, projection="3d")
        heights = np.transpose(np.where(np.isfinite(loss), loss, np.nan))
        colors = {"cmap": "viridis", "vmin": low, "vmax": high, "edgecolor": "black"}
        mesh = {"rcount": 31, "ccount": 31, "linewidth": 0.15}
        ax.plot_surface(*np.meshgrid(alphas, betas), heights, **colors, **mesh)
        ax.set_xlabel(xlabel, labelpad=6)
        ax.set_ylabel(ylabel, labelpad=8)
        ax.set_zlabel("loss", labelpad=9)
        ax.set_zlim(low, high)
        for axis, count in ((ax.xaxis, 2), (ax.yaxis, 2), (ax.zaxis, 4)):
            axis.set_major_locator(MaxNLocator(count))
        ax.set_box_aspect(None, zoom=0.8)
    figure.colorbar(filled, ax=maps, label="loss", format="%.3g")
    return ax


def planes(light: dict, phases=None, amplitudes=None, regions=()):
    """Draws light from plane to plane, and masks above it, with phases in colour.

    Light is drawn as the square root of the intensity relative to the picture's
    brightest pixel, so that faint light is visible.

    Args:
        light: name of a plane → intensities (samples, height, width), at least one
            plane; each sample has a row.
        phases: name of a mask → (height, width) in rad, from 0 to 2π.
        amplitudes: name of a mask → (height, width), from 0 to 1.
        regions: detectors on the last plane, (y, x, height, width) in pixels each.

    Returns:
        The last axis.

    Example:

    >>> light = np.random.default_rng(0).random((2, 16, 16))
    >>> phases = {"mask": np.linspace(0, 6, 256).reshape(16, 16)}
    >>> ax = planes({"encode": light, "free_space": light**2}, phases)
    """
    from matplotlib.patches import Rectangle

    kinds = [
        (phases or {}, "twilight", 2 * np.pi, "phase (rad)"),
        (amplitudes or {}, "gray", 1.0, "amplitude"),
    ]
    masks = [(name, kind) for kind in kinds for name in kind[0]]
    samples = len(next(iter(light.values())))
    columns, rows = max(len(masks), len(light)), samples + bool(masks)
    figure = new_figure(0.9 + 1.25 * columns, 0.3 + 1.35 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    drawn = {}

    def show(ax, values, cmap, high, label):
        options = {"cmap": cmap, "vmin": 0, "vmax": high, "interpolation": "nearest"}
        drawn[label] = ax.imshow(values, **options)

    for ax, (name, (values, *style)) in zip(axes[0], masks, strict=False):
        show(ax, np.asarray(values[name]), *style)
        ax.set_title(name, fontsize="small")
    root = "√(intensity / brightest)"
    for column, (name, pictures) in enumerate(light.items()):
        for picture, ax in zip(pictures, axes[rows - samples :, column], strict=True):
            brightest = np.max(picture)
            scaled = picture / (brightest if brightest > 0 else 1.0)
            show(ax, np.sqrt(scaled), "inferno", 1.0, root)
        axes[rows - samples, column].set_title(name, fontsize="small")
    for ax in axes[rows - samples :, len(light) - 1]:
        for y, x, height, width in regions:
            place = (x - 0.5, y - 0.5), width, height
            ax.add_patch(Rectangle(*place, fill=False, edgecolor="white", lw=0.6))
    for ax in np.ravel(axes):
        ax.set(xticks=[], yticks=[])
        if not ax.images:
            ax.set_axis_off()
    for label, picture in drawn.items():
        beside = axes[rows - samples :, -1] if label == root else axes[:1, -1]
        bar = figure.colorbar(picture, ax=list(beside), label=label)
        if "phase" in label:
            bar.set_ticks([0, np.pi, 2 * np.pi], labels=["0", "π", "2π"])
    return axes[-1, len(light) - 1]


def _edges(points) -> np.ndarray:
    """Returns the edges (n + 1,) of cells around ascending points (n,)."""
    points = np.asarray(points, "float64")
    if len(points) == 1:
        return points[0] + np.array([-0.5, 0.5])
    middle = (points[1:] + points[:-1]) / 2
    first, last = 2 * points[0] - middle[0], 2 * points[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])
