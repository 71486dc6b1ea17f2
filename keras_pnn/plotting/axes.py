"""Make figures and axes, and share styles and legends between plots."""

import os

# The colours of Okabe and Ito, which colour-blind readers can distinguish; each has a
# marker, so that curves differ in greyscale too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def new_figure(width: float = 6.0, height: float = 4.0):
    """Returns an empty Matplotlib figure without a window.

    Args:
        width, height: inches.

    Returns:
        A Matplotlib figure.

    Raises:
        ImportError: If Matplotlib is not installed.

    Example:

    >>> ax = new_figure(width=4, height=3).subplots()
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need Matplotlib: pip install 'keras-pnn[plot]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    # A canvas of its own, without a window system or the global state of pyplot.
    FigureCanvasAgg(figure)
    return figure


def save(ax, path: str | os.PathLike) -> None:
    """Writes the figure that an axis belongs to.

    Args:
        ax: a Matplotlib axis.
        path: the picture's path; its extension gives the format.

    Example:

    >>> ax = new_figure().subplots()
    >>> save(ax, "figure.png")
    """
    ax.figure.savefig(path)


def axis_of(ax):
    """Returns an axis: the given one, or that of a new figure."""
    return new_figure().subplots() if ax is None else ax


def styles(items: dict):
    """Yields (colour, marker, (name, value)) for each item."""
    for index, item in enumerate(items.items()):
        yield _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)], item


def specification(ax, spec) -> None:
    """Draws a horizontal line at the specification, if it is not `None`."""
    if spec is not None:
        ax.axhline(spec, color="black", linewidth=1.0, label=f"specification {spec:g}")


def finished(ax, grid: str = "both", **labels):
    """Sets labels and limits, draws the grid, and puts the legend below the axes."""
    ax.set(**labels)
    ax.grid(alpha=0.3, axis=grid)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        # Outside the axes, where it cannot hide data.
        ax.figure.legend(
            handles,
            labels,
            loc="outside lower center",
            # About 90 letters of this size fill the width of the figure.
            ncols=max(1, min(4, len(labels), 90 // (max(map(len, labels)) + 7))),
            fontsize="small",
            frameon=False,
        )
    return ax


def slanted(ax) -> None:
    """Slants the tick labels of the x axis."""
    for tick in ax.get_xticklabels():
        tick.set(rotation=30, ha="right", rotation_mode="anchor")
