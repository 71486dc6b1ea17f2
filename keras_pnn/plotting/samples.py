"""Draw samples: histograms, and one dot for each device."""

import numpy as np

from keras_pnn.plotting.axes import (
    axis_of,
    legend_below,
    slanted,
    specification,
    styles,
)


def histograms(values: dict, xlabel: str, bins: int = 60, ax=None):
    """Draws histograms over each other.

    Args:
        values: name → array of any shape.
        xlabel: label with unit.
        bins: number of bins, common to all.
        ax: a Matplotlib axis. Default: a new figure.

    Returns:
        The axis.
    """
    ax = axis_of(ax)
    flat = {name: np.ravel(v) for name, v in values.items()}
    everything = np.concatenate(list(flat.values()))
    edges = np.linspace(everything.min(), np.percentile(everything, 99.5), bins + 1)
    for color, _, (name, v) in styles(flat):
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


def distributions(
    values: dict, ylabel: str = "accuracy (%)", spec=None, nominal=None, ax=None
):
    """Draws one dot for each device, and a box, for each method.

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
    ax = axis_of(ax)
    for place, (color, marker, (name, v)) in enumerate(styles(values)):
        v = np.ravel(v)
        # Multiples of the golden ratio spread neighbours apart, reproducibly.
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
    specification(ax, spec)
    ax.set(ylabel=ylabel, xlim=(-0.6, len(values) - 0.4))
    ax.set_xticks(range(len(values)), list(values))
    # About 60 letters fill the width of the figure.
    if max(map(len, values)) * len(values) > 60:
        slanted(ax)
    ax.grid(alpha=0.3, axis="y")
    return legend_below(ax)
