"""Define the axes of sweeps and grids: deviations, spreads and factors."""

import numpy as np

from keras_pnn import _checks
from keras_pnn.devices import Axis, Variation

_SPREAD = "std:"


class DeviationAxis(Axis):
    """Deviations from nominal of the imperfection that the axis is named after."""

    @property
    def imperfections(self) -> list[str]:
        """The names of the imperfections."""
        return [self.name]


class SpreadAxis(Axis):
    """Standard deviations of imperfections; its name is `"std:<imperfection>+…"`."""

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
    """Factors on all deviations of the devices; its name is `"variation"`."""

    random = True
    imperfections = ()
    words = "factor on the deviations"


def axis_of(argument: str, name: str, values) -> Axis:
    """Returns the axis that `sweeps` or `grid` describes, with no unit yet."""
    kind = DeviationAxis
    if name == "variation":
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
