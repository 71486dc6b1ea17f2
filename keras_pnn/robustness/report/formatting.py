"""Format the numbers and names of a robustness report, and arrange them in tables."""

import dataclasses
import math

import numpy as np

from keras_pnn._display import Table

# Most points of a sweep or rows of a grid, so that they fit on a page.
_POINTS = 9
# Text for a value that was not measured.
ABSENT = "-"


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a report, with the meaning of its numbers."""

    # `"devices"`, `"sweep:temperature"`, …; figures have the same keys.
    key: str
    title: str
    meaning: str
    tables: list[Table] = dataclasses.field(default_factory=list)
    # Paragraphs of the section's content.
    text: tuple[str, ...] = ()
    # Name → text, for settings.
    lines: dict[str, str] = dataclasses.field(default_factory=dict)


def models_table(result, title: str, rows: dict[str, dict[str, str]]) -> Table:
    """Returns a table of heading → model → text, with one column for each model."""
    body = [
        (heading, *(texts.get(name, ABSENT) for name in result.models))
        for heading, texts in rows.items()
    ]
    return Table(title, ("", *result.models), body)


@dataclasses.dataclass(frozen=True)
class Display:
    """How a metric is shown: accuracies in percent, other metrics as numbers."""

    metric: str
    percent: bool

    @classmethod
    def of(cls, result, metric: str | None = None) -> "Display":
        """Returns the display of a metric, by default that of the specification."""
        metric = result.metric if metric is None else metric
        values = [m.nominal.get(metric, 0.0) for m in result.models.values()]
        share = "acc" in metric.lower() and all(not abs(v) > 1 for v in values)
        return cls(metric, share)

    @property
    def label(self) -> str:
        """The name and unit, as for an axis."""
        return f"{self.metric} (%)" if self.percent else self.metric

    @property
    def difference(self) -> str:
        """The unit of a difference of two values, in brackets."""
        return " (percentage points)" if self.percent else ""

    def scaled(self, values) -> np.ndarray:
        """Returns values in the displayed unit."""
        values = np.asarray(values, "float64")
        return 100 * values if self.percent else values

    def number(self, value: float | None, unit: bool = False) -> str:
        """Returns a value as text; NaN as `-`."""
        if not self.percent or value is None or math.isnan(value):
            return number(value)
        return f"{100 * value:.2f}" + (" %" if unit else "")


def number(value: float | None) -> str:
    """Returns a number with four significant digits; NaN as `-`."""
    if value is None or math.isnan(value):
        return ABSENT
    # The sum avoids "-0".
    return f"{value + 0.0:.4g}"


def specification(result) -> str:
    """Returns the specification in words."""
    sign = "≥" if result.mode == "max" else "≤"
    percent = Display.of(result).percent
    value = f"{100 * result.spec:g} %" if percent else f"{result.spec:g}"
    return f"{result.metric} {sign} {value}"


def interval(result, scan) -> tuple[str, str]:
    """Returns the tolerance of a sweep and its width; ≤ and ≥ mark a range's end.

    If only the point 0 keeps the specification, it is "less than" the nearest point.
    """
    low, high = scan.tolerance(result.metric, result.spec, result.mode)
    if math.isnan(low):
        return ABSENT, ABSENT
    positions = scan.axes[0].positions
    sides = [side for side in (-positions, positions) if side.max() > 0]
    if low == high == 0 and sides:
        nearest = [side[side > 0].min() for side in sides]
        width = f"less than {number(sum(nearest))}"
        return f"less than {number(max(nearest))}", width
    ends = open_ends(scan, low, high)
    width = ("≥ " if any(ends) else "") + number(high - low)
    left = ("≤ " if ends[0] else "") + number(low)
    right = ("≥ " if ends[1] else "") + number(high)
    return f"{left} … {right}", width


def open_ends(scan, low: float, high: float) -> tuple[bool, bool]:
    """Returns whether the bounds of a tolerance are the ends of the measured range.

    Whether the specification is kept beyond such an end is unknown. The start of a
    spread, 0, is not such an end.
    """
    if math.isnan(low):
        return False, False
    positions = scan.axes[0].positions
    return bool(low <= positions.min() < 0), bool(high >= positions.max() > 0)


def having(result, attribute: str) -> dict:
    """Returns name → part for the models that have this part."""
    found = {n: getattr(m, attribute) for n, m in result.models.items()}
    return {name: part for name, part in found.items() if part}


def named_parts(result, attribute: str) -> dict[str, dict]:
    """Returns name of a sweep or curvature → model → part, for models that have it."""
    found: dict[str, dict] = {}
    for label, parts in having(result, attribute).items():
        for name, part in parts.items():
            found.setdefault(name, {})[label] = part
    return found


def sensitivity_drops(result, model: str) -> np.ndarray:
    """Returns (layers, kinds): how much worse than nominal a model's metric is."""
    part, metric = result.models[model], result.metric
    drops = part.nominal[metric] - part.sensitivity.metrics[metric]
    return drops if result.mode == "max" else -drops


def chosen(n: int) -> np.ndarray:
    """Returns indices of at most nine of n points, evenly spread, with both ends."""
    return np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))


def shown_points(axis) -> list[str]:
    """Returns the chosen points of an axis as short texts."""
    if axis.positions is not None:
        texts = [number(value) for value in axis.positions]
    else:
        texts = [t if len(t) <= 16 else t[:15] + "…" for t in axis.ticks]
    return [texts[i] for i in chosen(len(axis))]


def words(value) -> str:
    """Returns a setting as text: nested dicts and lists on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{k} = {words(v)}" for k, v in value.items()) or ABSENT
    if isinstance(value, list | tuple):
        return ", ".join(words(v) for v in value) or ABSENT
    if isinstance(value, float):
        return f"{value:.6g}"
    return ABSENT if value is None else str(value)


def group_name(name: str) -> str:
    """Returns a group of variables in words."""
    return "all variables" if name == "all" else name
