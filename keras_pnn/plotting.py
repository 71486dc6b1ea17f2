"""Plots of arrays. Matplotlib is imported when a plot is made."""

import os

import numpy as np

_COLORS = ("#b4413c", "#1f6f8b", "#6a994e", "#8d6cab", "#e09f3e")
# Okabe and Ito's colours, which colour-blind readers tell apart; with a marker each
# they stay apart in grey.
_SAFE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def _axes(ax=None):
    return new_figure().subplots() if ax is None else ax


def save(ax, path: str | os.PathLike) -> None:
    """Writes the figure that an axis belongs to."""
    ax.figure.savefig(path)


def sweep(x, curves: dict, xlabel: str, ylabel: str = "accuracy (%)", ax=None):
    """Draws a metric against an imperfection, one line for each method.

    Args:
        x: values of the imperfection, (n,).
        curves: name → (n,), or (repeats, n) to show mean and range.
        xlabel: label with unit.
        ylabel: label with unit.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    for color, (name, values) in zip(_cycle(curves), curves.items(), strict=True):
        values = np.atleast_2d(values)
        ax.plot(x, values.mean(0), "o-", color=color, label=name, markersize=4)
        if len(values) > 1:
            low, high = values.min(0), values.max(0)
            ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    return _legend_below(ax)


def histograms(values: dict, xlabel: str, bins: int = 60, ax=None):
    """Draws distributions over each other.

    Args:
        values: name → array of any shape.
        xlabel: label with unit.
        bins: number of bins, common to all.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    flat = {name: np.ravel(v) for name, v in values.items()}
    everything = np.concatenate(list(flat.values()))
    edges = np.linspace(everything.min(), np.percentile(everything, 99.5), bins + 1)
    for color, (name, v) in zip(_cycle(flat), flat.items(), strict=True):
        ax.hist(
            np.clip(v, edges[0], edges[-1]),
            edges,
            color=color,
            alpha=0.55,
            label=name,
            weights=np.full(len(v), 100 / len(v)),
        )
    ax.set(xlabel=xlabel, ylabel="share of rings (%)")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def tuning_curve(control, weight, trained: dict, unit: str, ax=None):
    """Draws weight against control, with the trained controls on the curve.

    Args:
        control: the curve's controls, (n,).
        weight: its weights, (n,).
        trained: name → (controls, weights) of trained rings.
        unit: unit of the control.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    ax.plot(control, weight, color="0.6", label="tuning curve", zorder=1)
    for n, (color, (name, (c, w))) in enumerate(
        zip(_cycle(trained), trained.items(), strict=True)
    ):
        c, w = np.ravel(c), np.ravel(w)
        # A fixed thinning: some thousand dots show the density as well as all.
        step = max(1, len(c) // 1500)
        offset = 0.04 * (n + 1)
        ax.plot(
            c[::step],
            w[::step] - offset,
            ".",
            color=color,
            alpha=0.25,
            markersize=4,
            zorder=2,
        )
        ax.plot([], [], ".", color=color, label=f"{name} (drawn {offset:.2f} lower)")
    ax.set(xlabel=f"control ({unit})", ylabel="weight", xlim=(control[0], control[-1]))
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def distributions(values: dict, ylabel: str = "accuracy (%)", ax=None):
    """Draws one dot for each device, and the mean, for each method.

    Args:
        values: name → (devices,).
        ylabel: label with unit.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    for place, (color, v) in enumerate(
        zip(_cycle(values), values.values(), strict=True)
    ):
        v = np.ravel(v)
        spread = place + 0.3 * (np.arange(len(v)) / max(len(v) - 1, 1) - 0.5)
        ax.plot(spread, v, "o", color=color, alpha=0.6, markersize=5)
        ax.hlines(v.mean(), place - 0.3, place + 0.3, color=color, linewidth=2)
    ax.set(ylabel=ylabel, xlim=(-0.6, len(values) - 0.4))
    ax.set_xticks(range(len(values)), list(values))
    ax.grid(alpha=0.3, axis="y")
    return ax


def images(pictures: dict, ax=None):
    """Draws greyscale pictures below each other, 0 black and 1 white.

    Args:
        pictures: name → (height, width), values from 0 to 1, all of one width.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    arrays = [np.asarray(p) for p in pictures.values()]
    gap = np.full((max(2, arrays[0].shape[0] // 12), arrays[0].shape[1]), np.nan)
    stack, ticks, row = [], [], 0
    for array in arrays:
        ticks.append(row + array.shape[0] / 2)
        stack += [array, gap]
        row += len(array) + len(gap)
    ax.imshow(np.concatenate(stack[:-1]), cmap="gray", vmin=0, vmax=1)
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
    """Draws matrices beside each other in one colour scale, with their numbers.

    Args:
        values: name → (rows, columns), all of one shape; NaN is left empty.
        xlabel: what the columns are.
        ylabel: what the rows are.
        unit: unit of the elements.
        rows, columns: their names. Default: 0, 1, …
        cmap: a Matplotlib colour map.

    Returns:
        The last axis.
    """
    arrays = [np.asarray(v, "float64") for v in values.values()]
    height, width = arrays[0].shape
    # Letters of names and titles, in inches.
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
                # Percentages to a tenth; losses are often far below one.
                f"{value:.1f}" if high >= 10 else f"{value:.2g}",
                ha="center",
                va="center",
                color="black" if light else "white",
            )
        ax.set(title=name, xlabel=xlabel, ylabel=ylabel)
        ax.set_xticks(range(width), columns)
        ax.set_yticks(range(height), rows)
        if columns is not None and max(len(str(name)) for name in columns) > 6:
            _slanted(ax)
    figure.colorbar(picture, ax=list(axes), label=unit)
    return axes[-1]


def bands(
    x, curves: dict, xlabel: str, ylabel: str, spec=None, worst: str = "min", ax=None
):
    """Draws a metric against an imperfection: the design, and what devices do.

    Args:
        x: values of the imperfection, (n,).
        curves: name → a dict with `design` (n,) and `devices` (devices, n), either of
            which may be `None`. The design is drawn dashed; of the devices the median,
            solid with markers, the band from the 5th to the 95th percentile, and the
            worst, dotted.
        xlabel: label with unit.
        ylabel: label with unit.
        spec: the specification, a line across.
        worst: which of the devices is the worst, `"min"` or `"max"`.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    x = np.asarray(x)
    order = np.argsort(x, kind="stable")
    x = x[order]
    designs = [curve["design"] is not None for curve in curves.values()]
    devices = [curve["devices"] is not None for curve in curves.values()]
    for color, marker, (name, curve) in _styles(curves):
        style = {"marker": marker, "markersize": 4, "color": color}
        if curve["design"] is not None:
            values = np.asarray(curve["design"])[order]
            if not any(devices):
                ax.plot(x, values, "-", label=name, **style)
                continue
            ax.plot(x, values, "--", color=color, linewidth=1.4)
        if curve["devices"] is not None:
            values = np.asarray(curve["devices"])[:, order]
            low, median, high = np.percentile(values, (5, 50, 95), axis=0)
            ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            extreme = values.min(0) if worst == "min" else values.max(0)
            ax.plot(x, extreme, ":", color=color, linewidth=1.3)
            ax.plot(x, median, "-", label=name, **style)
    # The styles are the same for all curves: named once, in grey.
    if any(devices):
        ax.plot([], [], "-", color="0.35", label="median of the devices")
        label = "5 to 95 % of the devices"
        ax.fill_between([], [], [], color="0.35", alpha=0.25, linewidth=0, label=label)
        ax.plot([], [], ":", color="0.35", linewidth=1.3, label="worst at each point")
        if any(designs):
            ax.plot([], [], "--", color="0.35", linewidth=1.4, label="design")
    _specification(ax, spec)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    return _legend_below(ax)


def yields(x, curves: dict, xlabel: str, ylabel: str = "yield (%)", ax=None):
    """Draws shares with their intervals.

    Args:
        x: (n,), for example a spread.
        curves: name → three arrays (n,) in percent: the share, the lower and the
            upper bound of its interval.
        xlabel: label with unit.
        ylabel: label with unit.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    x = np.asarray(x, "float64")
    order = np.argsort(x, kind="stable")
    # Bars at one place would hide each other.
    step = 0.008 * np.ptp(x) if len(x) else 0.0
    for index, (color, marker, (name, parts)) in enumerate(_styles(curves)):
        share, low, high = (np.asarray(part, "float64")[order] for part in parts)
        ax.errorbar(
            x[order] + step * (index - (len(curves) - 1) / 2),
            share,
            # Rounding may leave a bound 1e-15 on the wrong side.
            np.maximum((share - low, high - share), 0),
            color=color,
            marker=marker,
            markersize=5,
            capsize=3,
            linewidth=1.4,
            label=name,
        )
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(-3, 103))
    ax.grid(alpha=0.3)
    return _legend_below(ax)


def strips(values: dict, ylabel: str, spec=None, nominal=None, ax=None):
    """Draws one dot for each device beside a box, for each method.

    The box spans the quartiles, with a line at the median; the whiskers reach from the
    5th to the 95th percentile.

    Args:
        values: name → (devices,).
        ylabel: label with unit.
        spec: the specification, a line across.
        nominal: name → the design's value, a star; or `None`.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    for place, (color, marker, (name, v)) in enumerate(_styles(values)):
        v = np.ravel(v)
        # The golden ratio spreads neighbours apart, the same way each time.
        spread = place + 0.08 + 0.25 * (np.arange(len(v)) * 0.6180339887498949 % 1)
        ax.plot(spread, v, marker, color=color, alpha=0.55, markersize=4)
        ax.boxplot(
            v,
            positions=[place - 0.14],
            widths=0.22,
            whis=(5, 95),
            showfliers=False,
            manage_ticks=False,
            medianprops={"color": "black"},
        )
        if nominal is not None:
            label = "nominal" if place == 0 else None
            ax.plot(place - 0.14, nominal[name], "k*", markersize=8, label=label)
    _specification(ax, spec)
    ax.set(ylabel=ylabel, xlim=(-0.6, len(values) - 0.4))
    ax.set_xticks(range(len(values)), list(values))
    # About 60 letters are as wide as the figure.
    if max(map(len, values)) * len(values) > 60:
        _slanted(ax)
    ax.grid(alpha=0.3, axis="y")
    return _legend_below(ax)


def heat_map(
    x, y, values, xlabel: str, ylabel: str, unit: str, level=None, limits=None, ax=None
):
    """Draws a metric over two imperfections.

    Args:
        x: (columns,) ascending.
        y: (rows,) ascending.
        values: (rows, columns).
        xlabel: label with unit.
        ylabel: label with unit.
        unit: what the colours are, with unit.
        level: where to draw a contour, a specification.
        limits: smallest and largest value of the colours. Default: those of `values`.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    values = np.asarray(values, "float64")
    low, high = limits if limits is not None else (None, None)
    # An edge of the cell's own colour hides the seams between cells.
    mesh = ax.pcolormesh(
        _edges(x),
        _edges(y),
        values,
        cmap="viridis",
        vmin=low,
        vmax=high,
        edgecolors="face",
        linewidth=0.4,
    )
    bar = ax.figure.colorbar(mesh, ax=ax, label=unit)
    inside = level is not None and np.nanmin(values) < level < np.nanmax(values)
    if inside and min(values.shape) > 1:
        ax.contour(x, y, values, [level], colors="white", linewidths=3)
        ax.contour(x, y, values, [level], colors="black", linewidths=1.4)
        bar.ax.axhline(level, color="black", linewidth=1.4)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def density(curves: dict, xlabel: str = "eigenvalue λ", ax=None):
    """Draws spectral densities on a logarithmic axis, with eigenvalues marked.

    Args:
        curves: name → a dict with `grid` (n,), `density` (n,) and `eigenvalues` (k,).
        xlabel: label with unit.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = _axes(ax)
    top = max(float(np.max(c["density"])) for c in curves.values())
    for color, marker, (name, curve) in _styles(curves):
        y = np.maximum(np.asarray(curve["density"], "float64"), 1e-7 * top)
        ax.fill_between(curve["grid"], 1e-7 * top, y, color=color, alpha=0.15)
        ax.plot(curve["grid"], y, color=color, label=name, linewidth=1.3)
        found = np.asarray(curve["eigenvalues"])
        style = {"marker": marker, "linestyle": "none", "markeredgecolor": "black"}
        ax.plot(found, np.full(len(found), 2e-6 * top), color=color, **style)
    ax.plot([], [], color="0.6", label="computed eigenvalues", **style)
    ax.set(
        xlabel=xlabel,
        ylabel="density of eigenvalues",
        yscale="log",
        ylim=(1e-6 * top, 3 * top),
    )
    ax.grid(alpha=0.3)
    return _legend_below(ax)


def landscapes(values: dict, xlabel: str, ylabel: str):
    """Draws losses over two directions: a contour map and a surface for each.

    Args:
        values: name → (alphas (n,), betas (m,), loss (n, m)); the maps share one
            scale of colours and heights.
        xlabel: the first direction.
        ylabel: the second.

    Returns:
        The last axis.
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
        ax.plot_surface(
            *np.meshgrid(alphas, betas),
            np.transpose(np.where(np.isfinite(loss), loss, np.nan)),
            cmap="viridis",
            vmin=low,
            vmax=high,
            rcount=31,
            ccount=31,
            linewidth=0.15,
            edgecolor="black",
        )
        ax.set_xlabel(xlabel, labelpad=6)
        ax.set_ylabel(ylabel, labelpad=8)
        ax.set_zlabel("loss", labelpad=9)
        ax.set_zlim(low, high)
        for axis, count in ((ax.xaxis, 2), (ax.yaxis, 2), (ax.zaxis, 4)):
            axis.set_major_locator(MaxNLocator(count))
        ax.set_box_aspect(None, zoom=0.8)
    figure.colorbar(filled, ax=maps, label="loss", format="%.3g")
    return ax


def new_figure(width: float = 6.0, height: float = 4.0):
    """Returns an empty Matplotlib figure that belongs to no window.

    Args:
        width, height: inches.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need Matplotlib: pip install 'keras-pnn[plot]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    # A canvas of its own: no window system, and no global state of pyplot.
    FigureCanvasAgg(figure)
    return figure


def _specification(ax, spec):
    if spec is not None:
        ax.axhline(spec, color="black", linewidth=1.0, label=f"specification {spec:g}")


def _legend_below(ax):
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        # Outside of the data, where curves can hide nothing.
        ax.figure.legend(
            handles,
            labels,
            loc="outside lower center",
            # About 90 letters of this size are as wide as the figure.
            ncols=max(1, min(4, len(labels), 90 // (max(map(len, labels)) + 7))),
            fontsize="small",
            frameon=False,
        )
    return ax


def _edges(points) -> np.ndarray:
    """Where cells end whose centres are (n,) ascending points: (n + 1,)."""
    points = np.asarray(points, "float64")
    if len(points) == 1:
        return points[0] + np.array([-0.5, 0.5])
    middle = (points[1:] + points[:-1]) / 2
    first, last = 2 * points[0] - middle[0], 2 * points[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])


def _slanted(ax):
    for tick in ax.get_xticklabels():
        tick.set(rotation=30, ha="right", rotation_mode="anchor")


def _styles(items: dict):
    for index, item in enumerate(items.items()):
        yield _SAFE[index % len(_SAFE)], _MARKERS[index % len(_MARKERS)], item


def _cycle(items) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(len(items))]
