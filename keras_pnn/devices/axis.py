"""Describe an axis of a sweep or a grid: its name, unit and points."""

import dataclasses
from typing import ClassVar

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Axis:
    """One axis of a sweep or a grid.

    Args:
        name: its name in the sweep or the grid.
        unit: the unit of its values, `""` for a pure number.
        values: (points,), or (points, …) for the elements of an imperfection.

    Example:

    >>> (axis,) = pnn.devices.sweep(model, "temperature", [-1.0, 0.0, 1.0]).axes
    >>> axis.label
    'temperature (K)'
    """

    name: str
    unit: str
    values: np.ndarray

    # Whether its values are spreads of random deviations.
    random: ClassVar[bool] = False

    @property
    def words(self) -> str:
        """The varied quantity, in words."""
        return self.name

    @property
    def label(self) -> str:
        """The label of its values, with the unit."""
        return self.with_unit(self.words)

    @property
    def line_label(self) -> str:
        """The label of its positions, which for several elements are lengths."""
        if self.values.ndim > 1 and self.positions is not None:
            return self.with_unit(f"{self.name}, length along its direction")
        return self.label

    def with_unit(self, words: str) -> str:
        """Returns `words` with the unit of the values."""
        return f"{words} ({self.unit})" if self.unit else words

    @property
    def positions(self) -> np.ndarray | None:
        """(points,) positions on a line through 0; `None` if there is no such line."""
        return line_positions(self.values)

    @property
    def ticks(self) -> list[str]:
        """The points as texts."""
        return [
            f"{v:g}" if v.ndim == 0 else f"({', '.join(f'{e:g}' for e in v.flat)})"
            for v in self.values
        ]

    def __len__(self):
        return len(self.values)

    def __repr__(self):
        unit = f" {self.unit}" if self.unit else ""
        ends = " … ".join(dict.fromkeys((self.ticks[0], self.ticks[-1])))
        return f"<{type(self).__name__} {self.name}: {len(self)} points, {ends}{unit}>"

    def to_dict(self) -> dict:
        """Returns name, unit, values and their positions on a line."""
        names = ("name", "unit", "values", "positions")
        return {name: getattr(self, name) for name in names}


def line_positions(values: np.ndarray) -> np.ndarray | None:
    """Returns positions of the points of a sweep on a line through 0, (n,).

    Numbers are their own positions; arrays have signed lengths along their line,
    positive towards the last. `None` if they are on no such line.
    """
    if values.ndim == 1:
        return values
    flat = values.reshape(len(values), -1)
    lengths = np.linalg.norm(flat, axis=1)
    if not lengths.any():
        return lengths
    # Rounding matters least for the direction of the farthest point.
    direction = flat[lengths.argmax()] / lengths.max()
    along = flat @ direction
    if np.abs(flat - np.outer(along, direction)).max() > 1e-9 * lengths.max():
        return None
    return along if along[-1] >= along[0] else -along
