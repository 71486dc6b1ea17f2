"""Writes a robustness report as HTML, JSON or CSV."""

import csv
import io
import json
import os
import pathlib

from keras_pnn.robustness.report.text import long_rows


def write(result, path: str | os.PathLike) -> None:
    """Writes a report; a file that stands there is replaced only once all is written.

    Args:
        result: a `RobustnessResult`.
        path: where to; folders that are missing are made. Its suffix, in either case,
            says what: `.html` is one file with the plots inside, `.json` is
            `result.to_dict()`, `.csv` has one row for each measured point.

    Raises:
        ValueError: another suffix.
        ImportError: HTML without Matplotlib.
    """
    path = pathlib.Path(path)
    contents = {".html": _html, ".json": _json, ".csv": _csv}.get(path.suffix.lower())
    if contents is None:
        raise ValueError(f"path must end in .html, .json or .csv. Received: {path}")
    written = contents(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(written, encoding="utf-8", newline="")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _html(result) -> str:
    from keras_pnn.robustness.report.html import html

    return html(result)


def _json(result) -> str:
    return json.dumps(result.to_dict(), allow_nan=False, ensure_ascii=False) + "\n"


def _csv(result) -> str:
    rows, stream = long_rows(result), io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
