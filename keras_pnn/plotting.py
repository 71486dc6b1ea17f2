"""Plots of arrays. Matplotlib is imported when a plot is made."""

import os

import numpy as np

_COLORS = ("#b4413c", "#1f6f8b", "#6a994e", "#8d6cab", "#e09f3e")


def _axes(ax=None):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need Matplotlib: pip install 'keras-pnn[plot]'"
        ) from error
    if ax is not None:
        return ax
    figure = Figure(figsize=(6.0, 4.0), dpi=120, layout="constrained")
    # A canvas of its own: no window system, and no global state of pyplot.
    FigureCanvasAgg(figure)
    return figure.subplots()


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
    ax.legend()
    return ax


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


def matrices(values: dict, xlabel: str, ylabel: str, unit: str = "%"):
    """Draws matrices beside each other in one colour scale, with their numbers.

    Args:
        values: name → (rows, columns), all of one shape.
        xlabel: what the columns are.
        ylabel: what the rows are.
        unit: unit of the elements.

    Returns:
        The last axis.
    """
    first = _axes()
    figure = first.figure
    figure.set_size_inches(1.0 + 3.2 * len(values), 3.4)
    first.remove()
    axes = figure.subplots(1, len(values), squeeze=False)[0]
    arrays = [np.asarray(v) for v in values.values()]
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    for ax, name, array in zip(axes, values, arrays, strict=True):
        picture = ax.imshow(array, vmin=low, vmax=high, cmap="viridis")
        for (row, column), value in np.ndenumerate(array):
            light = value < (low + high) / 2
            ax.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                color="white" if light else "black",
            )
        ax.set(title=name, xlabel=xlabel, ylabel=ylabel)
        ax.set_xticks(range(array.shape[1]))
        ax.set_yticks(range(array.shape[0]))
    figure.colorbar(picture, ax=list(axes), label=unit)
    return axes[-1]


def _cycle(items) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(len(items))]
