"""Arrange texts in tables and sections, which text and HTML show."""

import dataclasses
from collections.abc import Callable

from keras_pnn.robustness.report.words import ABSENT


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


# A model → the text of a cell; nothing (`None`, `False`) where it lacks the part.
Cell = Callable[[object], object]


def models_table(result, title: str, rows: dict[str, Cell]) -> Table:
    """Returns a table with one column for each model."""
    body = [
        (name, *(cell(model) or ABSENT for model in result.models.values()))
        for name, cell in rows.items()
    ]
    return Table(title, ("", *result.models), tuple(body))
