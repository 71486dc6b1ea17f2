"""Draw metrics against imperfections, tuning curves, densities and samples."""

from typing import TYPE_CHECKING

import numpy as np

from keras_pnn.plotting.axes import axis_of, finished, slanted, specification, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep(
    x, curves: dict, xlabel: str, ylabel: str = "accuracy (%)", ax: "Axes | None" = None
) -> "Axes":
    """Draws a metric against an imperfection, one line for each method.

    Args:
        x: values of the imperfection, (n,).
        curves: name → (n,), or (repeats, n) to show mean and range.

    Returns:
        A Matplotlib axis.

    Example:

    >>> curves = {"plain": [70, 98, 75], "SAT": [95, 97, 96]}
    >>> ax = sweep([-1, 0, 1], curves, "temperature (K)")
    """
    ax = axis_of(ax)
    order = np.argsort(x, kind="stable")
    x = np.asarray(x)[order]
    for color, _, (name, values) in styles(curves):
        values = np.atleast_2d(values)[:, order]
        ax.plot(x, values.mean(0), "o-", color=color, label=name, markersize=4)
        if len(values) > 1:
            low, high = values.min(0), values.max(0)
            ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    return finished(ax, xlabel=xlabel, ylabel=ylabel)


def bands(
    x,
    curves: dict,
    xlabel: str,
    ylabel: str,
    spec=None,
    worst: str = "min",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a metric against an imperfection, for the design and for devices.

    Args:
        x: values of the imperfection, (n,).
        curves: name → a dict with `design` (n,) and `devices` (devices, n), either of
            which may be `None`. The design is dashed; the devices have their median
            (solid, with markers), the band from the 5th to the 95th percentile, and
            their worst value (dotted).
        spec: the specification, a horizontal line.
        worst: which of the devices is the worst, `"min"` or `"max"`.

    Returns:
        A Matplotlib axis.

    Example:

    >>> devices = np.random.default_rng(0).uniform(80, 99, (20, 3))
    >>> curves = {"SAT": {"design": devices.max(0), "devices": devices}}
    >>> ax = bands([-1, 0, 1], curves, "temperature (K)", "accuracy (%)", spec=90)
    """
    ax = axis_of(ax)
    order = np.argsort(x, kind="stable")
    x = np.asarray(x)[order]
    designs = any(curve["design"] is not None for curve in curves.values())
    devices = any(curve["devices"] is not None for curve in curves.values())
    for color, marker, (name, curve) in styles(curves):
        style = {"marker": marker, "markersize": 4, "color": color}
        if curve["design"] is not None:
            values = np.asarray(curve["design"])[order]
            if not devices:
                ax.plot(x, values, "-", label=name, **style)
                continue
            label = name if curve["devices"] is None else None
            ax.plot(x, values, "--", color=color, linewidth=1.4, label=label)
        if curve["devices"] is not None:
            values = np.asarray(curve["devices"])[:, order]
            low, median, high = np.percentile(values, (5, 50, 95), axis=0)
            ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            extreme = values.min(0) if worst == "min" else values.max(0)
            ax.plot(x, extreme, ":", color=color, linewidth=1.3)
            ax.plot(x, median, "-", label=name, **style)
    # All curves share the line styles, which the legend explains once, in grey.
    if devices:
        ax.plot([], [], "-", color="0.35", label="median of the devices")
        label = "5 to 95 % of the devices"
        ax.fill_between([], [], [], color="0.35", alpha=0.25, linewidth=0, label=label)
        ax.plot([], [], ":", color="0.35", linewidth=1.3, label="worst at each point")
        if designs:
            ax.plot([], [], "--", color="0.35", linewidth=1.4, label="design")
    specification(ax, spec)
    return finished(ax, xlabel=xlabel, ylabel=ylabel)


def yields(
    x, curves: dict, xlabel: str, ylabel: str = "yield (%)", ax: "Axes | None" = None
) -> "Axes":
    """Draws yields with their confidence intervals.

    Args:
        x: (n,), for example a spread.
        curves: name → three arrays (n,) in percent: the share, the lower and the
            upper bound of its interval.

    Returns:
        A Matplotlib axis.

    Example:

    >>> ax = yields([0, 1], {"SAT": ([99, 90], [95, 80], [100, 95])}, "spread (nm)")
    """
    ax = axis_of(ax)
    order = np.argsort(x, kind="stable")
    x = np.asarray(x, "float64")[order]
    # Offset, since bars at the same place would hide each other.
    step = 0.008 * np.ptp(x) if len(x) else 0.0
    for index, (color, marker, (name, parts)) in enumerate(styles(curves)):
        share, low, high = (np.asarray(part, "float64")[order] for part in parts)
        style = {"color": color, "marker": marker, "markersize": 5, "label": name}
        place = x + step * (index - (len(curves) - 1) / 2)
        # Rounding may put a bound 1e-15 on the wrong side.
        spans = np.maximum((share - low, high - share), 0)
        ax.errorbar(place, share, spans, capsize=3, linewidth=1.4, **style)
    return finished(ax, xlabel=xlabel, ylabel=ylabel, ylim=(-3, 103))


def tuning_curve(
    control, weight, trained: dict, unit: str, ax: "Axes | None" = None
) -> "Axes":
    """Draws weight against control, with the trained controls on the curve.

    Args:
        control: the curve's controls, (n,).
        weight: its weights, (n,).
        trained: name → (controls, weights) of trained rings.
        unit: unit of the control.

    Returns:
        A Matplotlib axis.

    Example:

    >>> control = np.linspace(0, 1, 50)  # nm
    >>> weight = np.asarray(pnn.LorentzianTuning().weight(control))
    >>> trained = {"SAT": (control[::5], weight[::5])}
    >>> ax = tuning_curve(control, weight, trained, "nm")
    """
    ax = axis_of(ax)
    ax.plot(control, weight, color="0.6", label="tuning curve", zorder=1)
    for n, (color, _, (name, (c, w))) in enumerate(styles(trained)):
        c, w = np.ravel(c), np.ravel(w)
        # Fewer than 3000 dots show the density as well as all dots.
        step = max(1, len(c) // 1500)
        offset = 0.04 * (n + 1)
        style = {"color": color, "alpha": 0.25, "markersize": 4, "zorder": 2}
        ax.plot(c[::step], w[::step] - offset, ".", **style)
        ax.plot([], [], ".", color=color, label=f"{name} (drawn {offset:.2f} lower)")
    ax.set(xlabel=f"control ({unit})", ylabel="weight", xlim=(control[0], control[-1]))
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def density(
    curves: dict, xlabel: str = "eigenvalue λ", ax: "Axes | None" = None
) -> "Axes":
    """Draws spectral densities on a logarithmic axis, with eigenvalues marked.

    Args:
        curves: name → a dict with `grid` (n,), `density` (n,) and `eigenvalues` (k,).

    Returns:
        A Matplotlib axis.

    Example:

    >>> grid = np.linspace(-1, 5, 50)
    >>> curve = {"grid": grid, "density": np.exp(-(grid**2)), "eigenvalues": [4.2]}
    >>> ax = density({"plain": curve})
    """
    ax = axis_of(ax)
    top = max(float(np.max(c["density"])) for c in curves.values())
    for color, marker, (name, curve) in styles(curves):
        y = np.maximum(np.asarray(curve["density"], "float64"), 1e-7 * top)
        ax.fill_between(curve["grid"], 1e-7 * top, y, color=color, alpha=0.15)
        ax.plot(curve["grid"], y, color=color, label=name, linewidth=1.3)
        found = np.asarray(curve["eigenvalues"])
        style = {"marker": marker, "linestyle": "none", "markeredgecolor": "black"}
        ax.plot(found, np.full(len(found), 2e-6 * top), color=color, **style)
    ax.plot([], [], color="0.6", label="computed eigenvalues", **style)
    limits = {"yscale": "log", "ylim": (1e-6 * top, 3 * top)}
    return finished(ax, xlabel=xlabel, ylabel="density of eigenvalues", **limits)


def histograms(
    values: dict, xlabel: str, bins: int = 60, ax: "Axes | None" = None
) -> "Axes":
    """Draws overlaid histograms.

    Args:
        values: name → array of any shape.
        bins: number of bins, common to all, up to the 99.5th percentile of all values;
            the last one holds those beyond it too.

    Returns:
        A Matplotlib axis.

    Example:

    >>> detunings = np.random.default_rng(0).uniform(0, 1, 500)
    >>> ax = histograms({"plain": detunings}, "detuning (nm)")
    """
    ax = axis_of(ax)
    flat = {name: np.ravel(v) for name, v in values.items()}
    everything = np.concatenate(list(flat.values()))
    edges = np.linspace(everything.min(), np.percentile(everything, 99.5), bins + 1)
    for color, _, (name, v) in styles(flat):
        style = {"color": color, "alpha": 0.55, "label": name}
        weights = np.full(len(v), 100 / len(v))
        ax.hist(np.clip(v, edges[0], edges[-1]), edges, weights=weights, **style)
    ax.set(xlabel=xlabel, ylabel="share (%)")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def distributions(
    values: dict,
    ylabel: str = "accuracy (%)",
    spec=None,
    nominal=None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws one dot for each device, and one box for each method.

    The box spans the quartiles, with a line at the median; the whiskers reach from the
    5th to the 95th percentile.

    Args:
        values: name → (devices,).
        spec: the specification, a horizontal line.
        nominal: name → the design's value, a star; or `None`.

    Returns:
        A Matplotlib axis.

    Example:

    >>> chips = np.random.default_rng(0).uniform(80, 99, 20)
    >>> ax = distributions({"plain": chips - 5, "SAT": chips}, spec=90)
    """
    ax = axis_of(ax)
    for place, (color, marker, (name, v)) in enumerate(styles(values)):
        v = np.ravel(v)
        # Multiples of the golden ratio separate neighbours reproducibly.
        spread = place + 0.08 + 0.25 * (np.arange(len(v)) * 0.6180339887498949 % 1)
        style = {"color": color, "alpha": 0.55, "markersize": 4, "label": name}
        ax.plot(spread, v, marker, **style)
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
    ax.set_xticks(range(len(values)), list(values))
    # About 60 letters fill the width of the figure.
    if max(map(len, values)) * len(values) > 60:
        slanted(ax)
    return finished(ax, grid="y", ylabel=ylabel, xlim=(-0.6, len(values) - 0.4))
