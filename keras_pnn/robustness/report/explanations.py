"""Explain the numbers of a report to readers of the HTML page."""

from keras_pnn._version import DOCS_URL

_PAGE = "what-the-numbers-mean"

# Kind of section → title, heading on the documentation's page, and a short text.
_TEXTS = {
    "summary": (
        "Summary",
        "devices",
        "Nominal is the design, without imperfections. A device is the design with "
        "its own deviations in every element. The mean is the average over the "
        "devices; 95 % of them do better than the percentile. The worst depends on "
        "the number of devices: compare it for equal numbers only. λ_max has the unit "
        "of the loss over the square of the variables' unit.",
    ),
    "devices": (
        "Devices and yield",
        "devices",
        "All models get the same devices if their architectures agree. The spread is "
        "between devices with one set of weights, not between training runs. Take 100 "
        "or more devices for the 5th percentile. The interval of the yield (Wilson, "
        "95 %) covers the random choice of devices, but neither a wrong standard "
        "deviation nor the finite test set.",
    ),
    "sweep": (
        "Sweeps and tolerances",
        "sweeps",
        "Points are deviations from the nominal value, so that 0 is the design. The "
        "tolerance is followed from 0 to each side, up to the last point before the "
        "curve first breaks the specification. ≤ and ≥ mark an end of the measured "
        "range, beyond which nothing is known; - means that the specification is "
        "broken at 0 already, that 0 is outside the measured range, or that the points "
        "are not on a line through 0. The mean may keep the specification where some "
        "devices do not: for their share, read the yield.",
    ),
    "grid": (
        "Grids",
        "sweeps",
        "Each cell is one combination of two deviations from the nominal values. The "
        "line marks where the specification is just kept.",
    ),
    "worst": (
        "Adversarial worst case",
        "adversarial-worst-case",
        "Gradient ascent over the imperfections searches for the largest loss within a "
        "radius for each. As the ascent is local, the worst loss may be larger. Random "
        "devices do not come near it: with thousands of elements, none points in this "
        "direction. It shows what correlated errors could do.",
    ),
    "sensitivity": (
        "Sensitivity",
        "sensitivity",
        "The cost of one kind of imperfection in one layer alone. These costs do not "
        "add up to the cost of a whole device: layers interact, and a layer that looks "
        "harmless alone may break a network that is at its limit.",
    ),
    "curvature": (
        "Curvature",
        "curvature",
        "The largest eigenvalues of the Hessian say how sharply the loss rises along "
        "the sharpest directions; small, independent errors of standard deviation σ "
        "raise it by ½ σ² × trace on average. Eigenvalues depend on the unit of the "
        "variables, and describe the loss near the present controls only: for large "
        "deviations, read the sweeps.",
    ),
    "landscape": (
        "Loss landscape",
        "loss-landscape",
        "Two directions out of many thousands: a flat picture shows only that these "
        "two are flat. Eigenvectors are the sharpest two at the centre; random "
        "directions look flatter.",
    ),
    "transfer": (
        "Transfer",
        "transfer",
        "A network that was trained on one chip may fit the errors of that chip. "
        "Compare each model on its own device with the same model on the others.",
    ),
    "light": (
        "Light and masks",
        "light-and-masks",
        "Masks of phases are shown over one turn, in colours that meet at 0 and 2π. "
        "Light that leaves the plane, is absorbed, or misses the detectors is lost: "
        "the smaller the share that reaches them, the more power the laser needs, and "
        "the more scattered light matters. Rough masks tolerate less misalignment "
        "than smooth ones.",
    ),
    "setting": (
        "How it was made",
        "how-it-was-made-and-made-again",
        "The same model, data, arguments, seed and version give the same figures, to "
        "rounding. The digest tells whether two reports are about the same data.",
    ),
}


def explanation(key: str) -> tuple[str, str]:
    """Returns (title, text) for a section's key."""
    title, _, text = _TEXTS[_kind(key)]
    return title, text


def link(key: str) -> str:
    """Returns the address of an explanation in the documentation or on the page."""
    if DOCS_URL:
        return f"{DOCS_URL}/{_PAGE}/#{_TEXTS[_kind(key)][1]}"
    return f"#{anchor(key)}"


def anchor(key: str) -> str:
    """Returns the id of an explanation on the page."""
    return f"meaning-{_kind(key)}"


def _kind(key: str) -> str:
    """Returns the kind of section: "sweep" for "sweep:temperature", for example."""
    return "summary" if key == "conclusion" else key.partition(":")[0]
