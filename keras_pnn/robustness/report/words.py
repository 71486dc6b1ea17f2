"""The words of a robustness report: numbers, units and tables as text."""

import dataclasses
import math

import numpy as np

# A sweep's points, a grid's rows: no more than fit beside each other on a page.
_POINTS = 9
# Where nothing was measured.
ABSENT = "-"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        title: what it shows.
        columns: headings; the first is that of the row names.
        rows: texts, each row as long as `columns`.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        key: `"devices"`, `"sweep:temperature"`, …; figures have the same keys.
        title: its heading.
        meaning: what its numbers mean.
        tables: its tables.
        lines: name → text, for settings.
    """

    key: str
    title: str
    meaning: str
    tables: tuple[Table, ...] = ()
    lines: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Display:
    """How a metric is shown: accuracies in percent, other metrics as numbers.

    Args:
        metric: its name.
        percent: whether it is shown in percent.
    """

    metric: str
    percent: bool

    @classmethod
    def of(cls, result, metric: str | None = None) -> "Display":
        """How a result's metric is shown; by default that of its specification."""
        metric = result.metric if metric is None else metric
        values = [m.nominal.get(metric, 0.0) for m in result.models.values()]
        share = "acc" in metric.lower() and all(not abs(v) > 1 for v in values)
        return cls(metric, share)

    @property
    def label(self) -> str:
        """Name and unit, as for an axis."""
        return f"{self.metric} (%)" if self.percent else self.metric

    @property
    def difference(self) -> str:
        """The unit of a difference of two values, in brackets."""
        return " (percentage points)" if self.percent else ""

    def scaled(self, values):
        """The values in the unit shown."""
        values = np.asarray(values, "float64")
        return 100 * values if self.percent else values

    def number(self, value: float, unit: bool = False) -> str:
        """A value as text; NaN as `-`."""
        if value is None or math.isnan(value):
            return ABSENT
        if self.percent:
            return f"{100 * value:.2f}" + (" %" if unit else "")
        return number(value)


def number(value: float) -> str:
    """A number with four significant digits; NaN as `-`."""
    if value is None or math.isnan(value):
        return ABSENT
    # No "-0".
    return f"{value + 0.0:.4g}"


def specification(result) -> str:
    """The specification in words."""
    display = Display.of(result)
    sign = "≥" if result.mode == "max" else "≤"
    value = f"{100 * result.spec:g} %" if display.percent else f"{result.spec:g}"
    return f"{result.metric} {sign} {value}"


def yield_rows(result, heading: str) -> dict[str, list[str]]:
    """Yield and its interval: heading → one text for each model."""
    found = [result.yield_of(name) for name in result.models]
    bounds = [None if y is None else [100 * v for v in y.interval] for y in found]
    return {
        heading: [
            ABSENT if y is None else f"{100 * y.value:.1f} % ({y.passed}/{y.n})"
            for y in found
        ],
        f"{heading}, 95 % interval": [
            ABSENT if b is None else f"{b[0]:.1f} … {b[1]:.1f} %" for b in bounds
        ],
    }


def interval(scan, metric: str, spec: float, mode: str) -> tuple[str, str]:
    """The interval and the width within which a sweep keeps a specification.

    Returns:
        Two texts; a bound that is the end of the measured range has `≤` or `≥`.
    """
    low, high = scan.tolerance(metric, spec, mode)
    if math.isnan(low):
        return ABSENT, ABSENT
    ends = open_ends(scan, low, high)
    width = ("≥ " if any(ends) else "") + number(high - low)
    left = ("≤ " if ends[0] else "") + number(low)
    right = ("≥ " if ends[1] else "") + number(high)
    return f"{left} … {right}", width


def open_ends(scan, low: float, high: float) -> tuple[bool, bool]:
    """Whether the bounds of a sweep's tolerance are the ends of the measured range.

    Beyond such an end the specification may be kept or not. A spread starts at 0 by
    itself, which is no such end.
    """
    if math.isnan(low):
        return False, False
    positions = scan.axes[0].positions
    return bool(low <= positions.min() < 0), bool(high >= positions.max() > 0)


def having(result, attribute: str) -> dict:
    """The models that have a part: name → that part."""
    found = {n: getattr(m, attribute) for n, m in result.models.items()}
    return {name: part for name, part in found.items() if part}


def chosen(n: int) -> np.ndarray:
    """Indices of at most nine of n points, evenly spread, with both ends."""
    return np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))


def axis_label(axis) -> str:
    """An axis's label; a line through several elements says so."""
    if np.ndim(axis.values) > 1 and axis.positions is not None:
        name, unit = axis.name, f" ({axis.unit})" if axis.unit else ""
        return f"{name}, length along its direction{unit}"
    return axis.label


def points(axis) -> list[str]:
    """The points of an axis as short texts."""
    if axis.positions is not None:
        return [number(value) for value in axis.positions]
    return [t if len(t) <= 16 else t[:15] + "…" for t in axis.ticks]


def model_table(result, title: str, rows: dict[str, list[str]]) -> Table:
    """A table with one column for each model.

    Args:
        result: a `RobustnessResult`.
        title: what it shows.
        rows: name → one text for each model.
    """
    body = tuple((name, *cells) for name, cells in rows.items())
    return Table(title, ("", *result.models), body)


def words(value) -> str:
    """A setting as text: nested dicts and lists on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{k} = {words(v)}" for k, v in value.items()) or ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(words(v) for v in value) or ABSENT
    if isinstance(value, np.ndarray):
        return words(value.tolist())
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    return ABSENT if value is None else str(value)


def group_name(name: str) -> str:
    """A group of variables in words."""
    return {"controls": "controls", "all": "all variables"}.get(name, name)


def plain_name(name: str) -> str:
    """What a sweep varies, in words."""
    if name.startswith("std:"):
        return "σ of " + ", ".join(name[4:].split("+"))
    return "factor on the deviations" if name == "variation" else name
