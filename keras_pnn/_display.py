"""Show objects on one line, as tables of text, and as HTML in notebooks."""

import dataclasses
import inspect
import math
from html import escape

import keras
import numpy as np
import tensorflow as tf

_LONGEST = 160
_FEW = 4


def brief(value) -> str:
    """Returns a short text for a value; only the size for arrays and long lists."""
    if isinstance(value, keras.Model):
        return f"<{type(value).__name__} {value.name!r}>"
    if isinstance(value, np.ndarray | tf.Tensor | tf.Variable | keras.Variable):
        shape = tuple(value.shape)
        if tf.is_symbolic_tensor(value) or math.prod(shape) > _FEW:
            return f"<{keras.backend.standardize_dtype(value.dtype)} {shape}>"
        value = np.asarray(value).tolist()
    if isinstance(value, float | np.floating):
        text = repr(float(value))
        return text if len(text) <= 8 else f"{value:.6g}"
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{k!r}: {brief(v)}" for k, v in value.items()) + "}"
        return text if len(value) <= _FEW else f"<{len(value)} entries>"
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(brief, value[: _FEW + 1]))}]"
        short = len(value) <= _FEW and len(text) <= 60
        return text if short else f"<{len(value)} items>"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


class Brief:
    """Base of objects whose repr is one line: the arguments that are not `None`."""

    def __repr__(self):
        # Attributes are missing if `__init__` failed half-way.
        found = {name: getattr(self, name, None) for name in self._shown_names()}
        shown = [f"{n}={brief(v)}" for n, v in found.items() if v is not None]
        text = f"{type(self).__name__}({', '.join(shown)})"
        return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + "...)"

    def _shown_names(self) -> list[str]:
        return list(inspect.signature(type(self)).parameters)


class Shown(Brief):
    """Base of objects that are shown as tables.

    A subclass implements `_parts`, which returns `Table`s, and paragraphs as strings.
    """

    def _parts(self) -> list:
        raise NotImplementedError

    def table(self) -> str:
        """Returns the object as tables of text."""
        return "\n".join(p if isinstance(p, str) else p.text() for p in self._parts())

    def __str__(self):
        return self.table()

    def _repr_html_(self) -> str:
        return html(self._parts())


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts; the first column holds the names of the rows."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        """Returns the table in columns of text."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title] if self.title else []
        for row in rows:
            cells = [cell.rjust(n) for cell, n in zip(row, widths, strict=True)]
            cells[0] = row[0].ljust(widths[0])
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def html(self) -> str:
        """Returns the table as an HTML element."""
        caption = f"<caption>{escaped(self.title)}</caption>" if self.title else ""
        # Screen readers would announce an empty heading.
        first, *others = self.columns
        corner = f'<th scope="col">{escaped(first)}</th>' if first else "<td></td>"
        heads = "".join(f'<th scope="col">{escaped(name)}</th>' for name in others)
        rows = "\n".join(
            f'<tr><th scope="row">{escaped(row[0])}</th>'
            + "".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="scroll"><table>{caption}\n'
            f"<thead><tr>{corner}{heads}</tr></thead>\n"
            f"<tbody>\n{rows}\n</tbody></table></div>"
        )


def html(parts: list) -> str:
    """Returns `Table`s and paragraphs as HTML."""
    return "\n".join(
        f'<p style="white-space: pre-line">{escaped(part)}</p>'
        if isinstance(part, str)
        else part.html()
        for part in parts
    )


def escaped(words: str) -> str:
    """Escapes text for HTML, and keeps numbers on one line with sign and unit."""
    for sign in ("≥ ", "≤ ", " %"):
        words = words.replace(sign, sign.replace(" ", "\u00a0"))
    return escape(words)


def dataframe(rows: list[dict]):
    """Returns rows as a pandas DataFrame."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "to_dataframe needs pandas: pip install 'keras-pnn[dataframe]'"
        ) from error
    return pandas.DataFrame(rows)
