"""Say what a sweep or a grid varies: a deviation, a spread, or a factor."""

import dataclasses
from typing import ClassVar

import numpy as np

from keras_pnn import _checks
from keras_pnn.devices import Variation
from keras_pnn.robustness import statistics

_SPREAD = "std:"
_FACTOR = "variation"


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a scan.

    Args:
        name: the name that sweeps and grid give it.
        unit: the unit of its values, `""` for a pure number.
        values: (points,), or (points, …) for the elements of an imperfection.
    """

    name: str
    unit: str
    values: np.ndarray

    # Whether its values are spreads of random deviations.
    random: ClassVar[bool] = False

    @property
    def words(self) -> str:
        """What it varies, in words."""
        return self.name

    @property
    def positions(self) -> np.ndarray | None:
        """(points,) positions on a line through 0; `None` if they are on none."""
        return statistics.line_positions(self.values)

    @property
    def ticks(self) -> list[str]:
        """The points as texts."""
        return [
            f"{v:g}" if v.ndim == 0 else f"({', '.join(f'{e:g}' for e in v.flat)})"
            for v in self.values
        ]

    def __len__(self):
        return len(self.values)

    def to_dict(self) -> dict:
        """Returns name, unit, values and their positions on a line."""
        names = ("name", "unit", "values", "positions")
        return {name: getattr(self, name) for name in names}


class DeviationAxis(Axis):
    """Deviations from nominal of the imperfection that gives the axis its name."""


class SpreadAxis(Axis):
    """Standard deviations of some imperfections, named `"std:<imperfection>+…"`."""

    random = True

    @property
    def imperfections(self) -> list[str]:
        """The names of the imperfections."""
        return self.name.removeprefix(_SPREAD).split("+")

    @property
    def words(self) -> str:
        return f"σ of {', '.join(self.imperfections)}"

    def variation(self, std: float) -> Variation:
        """Returns the variation with one standard deviation for all imperfections."""
        return Variation(dict.fromkeys(self.imperfections, float(std)))


class FactorAxis(Axis):
    """Factors on all deviations of the devices, named `"variation"`."""

    random = True

    @property
    def words(self) -> str:
        return "factor on the deviations"


def axis_of(argument: str, name: str, values) -> Axis:
    """Returns the axis that `sweeps` or `grid` describes, with no unit yet.

    Raises:
        ValueError: If values are missing, not finite, ragged, or negative spreads.
    """
    kind = DeviationAxis
    if name == _FACTOR:
        kind = FactorAxis
    elif name.startswith(_SPREAD):
        kind = SpreadAxis
    where = f"{argument}[{name!r}]"
    low = 0 if kind.random else None
    found = np.atleast_1d(_checks.array(where, values, low=low))
    if not len(found):
        raise _checks.error(where, "at least one value", values)
    if kind.random and found.ndim != 1:
        raise _checks.error(where, "numbers ≥ 0", _checks.short(values))
    return kind(name, "", found)
