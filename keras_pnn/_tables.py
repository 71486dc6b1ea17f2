"""Read tables of numbers as laboratories and spreadsheets write them."""

import codecs
import csv
import dataclasses
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

# Unlike `float`, this does not accept "1_000" or "nan".
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Table:
    """The cells of a table below its headings.

    Attributes:
        path: the file.
        headings: one string for each column.
        heading_line: the line of the headings, counted from 1.
        rows: for each row, one string per heading; missing cells are empty.
        lines: the line of each row.
        delimiter: the separator of cells. If it is not a comma, commas are decimal.
        cut: whether the file ends within a row, which lacks cells and a line end.
    """

    path: str
    headings: list[str]
    heading_line: int
    rows: list[list[str]]
    lines: list[int]
    delimiter: str
    cut: bool

    def place(self, row: int) -> str:
        """Returns the file and line of a row, for messages."""
        return f"{self.path}, line {self.lines[row]}"

    def number(self, cell: str) -> float:
        """Returns the number in a cell; NaN if there is no finite number."""
        cell = cell.strip()
        if not _NUMBER.fullmatch(cell) or ("," in cell and self.delimiter == ","):
            return math.nan
        value = float(cell.replace(",", "."))
        return value if math.isfinite(value) else math.nan

    def numbers(self, column: int) -> np.ndarray:
        """Returns a column as a float64 array.

        Errors name file, line and heading.
        """
        cells = [row[column] for row in self.rows]
        heading, comma = self.headings[column], any("," in cell for cell in cells)
        for i, cell in enumerate(cells):
            if math.isnan(self.number(cell)):
                expected = f"a finite number under {heading!r}"
                raise error(self.place(i), expected, repr(cell))
            if comma and "." in cell:
                expected = (
                    f"decimal commas under {heading!r}, as in other lines, without "
                    "separators of thousands"
                )
                raise error(self.place(i), expected, repr(cell))
        return np.array([self.number(cell) for cell in cells])

    def records(self, number: str) -> Iterator[tuple[dict[str, str], float, str]]:
        """Yields for each row heading → cell, the number under one, and its place."""
        values = self.numbers(self.headings.index(number)).tolist()
        for i, (cells, value) in enumerate(zip(self.rows, values, strict=True)):
            yield dict(zip(self.headings, cells, strict=True)), value, self.place(i)


def error(where, expected: str, received) -> ValueError:
    """Returns the error for a file, or a line of it, that is not as expected."""
    return ValueError(f"{where}: expected {expected}. Received: {received}")


def element(text: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the index in a text such as `"0;3"`; `None` if it is not in the shape."""
    parts = [part.strip() for part in text.split(";") if part]
    if len(parts) != len(shape) or not all(map(str.isdecimal, parts)):
        return None
    index = tuple(map(int, parts))
    return index if all(i < n for i, n in zip(index, shape, strict=True)) else None


def read(path: str | os.PathLike) -> Table:
    """Reads a table with one line of headings, in UTF-8 or UTF-16.

    Cells are separated by semicolons, tabs or commas, as the headings are. With
    semicolons and tabs, numbers may have decimal commas. Blank lines, lines that begin
    with `#` and a byte-order mark are skipped; if only a comment line names the
    columns, as in files from `numpy.savetxt`, it holds the headings.
    """
    name, content = os.fspath(path), pathlib.Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(
            f"{name} must be a CSV file in UTF-8 or UTF-16. Received: {problem}"
        ) from None
    lines = text.splitlines(keepends=True)
    # Spreadsheets may announce the separator.
    announced = re.fullmatch(r'"?sep=(.)"?\s*', lines[0]) if lines else None
    if announced:
        lines[0] = "\n"
    comments = {
        i: line.strip().lstrip("#").strip()
        for i, line in enumerate(lines)
        if line.lstrip().startswith("#")
    }
    for i in comments:
        lines[i] = "\n"
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    heading = lines[first] if lines else ""
    delimiter = announced[1] if announced else _delimiter(heading)
    header = "a header that names the columns"
    rows = list(_split(name, lines, delimiter))
    if not rows:
        raise error(f"{name}, line 1", header, "an empty file")
    (line, headings), *rows = rows
    if all(_NUMBER.fullmatch(cell) for cell in headings if cell):
        above = [i for i in comments if i < first]
        named = _cells(comments[above[-1]], delimiter) if above else []
        if len(named) != len(headings) or all(map(_NUMBER.fullmatch, named)):
            received = repr(delimiter.join(headings))
            raise error(f"{name}, line {line}", header, received)
        rows = [(line, headings), *rows]
        line, headings = above[-1] + 1, named
    while headings and not headings[-1]:
        headings.pop()
    for number, row in rows:
        if any(row[len(headings) :]):
            expected = (
                f"{len(headings)} cells, as many as headings (numbers with decimal "
                "commas need semicolons or tabs between them)"
            )
            raise error(f"{name}, line {number}", expected, repr(delimiter.join(row)))
    width = len(headings)
    cells = [(row + [""] * width)[:width] for _, row in rows]
    cut = bool(rows) and len(rows[-1][1]) < width and not text.endswith(("\n", "\r"))
    return Table(name, headings, line, cells, [n for n, _ in rows], delimiter, cut)


def unit(heading: str, known: Iterable[str]) -> str | None:
    """Returns the known unit that a heading ends with; `None` if there is none.

    Understands "current_mA", "I (mA)", "I [mA]", "I / mA" and "I in mA".
    """
    units = "|".join(map(re.escape, map(_plain, known)))
    found = re.search(rf"(?:^|[\s_(\[/])({units})\s*[)\]]?\s*$", _plain(heading))
    return found[1] if found else None


def _plain(text: str) -> str:
    """Returns text with a single character for micro instead of two variants."""
    return unicodedata.normalize("NFKC", text)


def _delimiter(line: str) -> str:
    line = re.sub(r'"[^"]*"', "", line)
    return next((mark for mark in "\t;" if mark in line), ",")


def _split(path, lines, delimiter):
    """Yields number and cells of each line that has a filled cell."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            row = [cell.strip() for cell in row]
            if any(row):
                yield reader.line_num, row
    except csv.Error as problem:
        raise ValueError(
            f"{path}, line {reader.line_num}: must be a line of a CSV file. "
            f"Received: {problem}"
        ) from None


def _cells(line, delimiter):
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
    except (csv.Error, StopIteration):
        return []
