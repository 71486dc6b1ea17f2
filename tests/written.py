"""Write tables as laboratories and spreadsheets do."""

import csv
import io

import pytest

FORMS = pytest.mark.parametrize("form", ["semicolons", "tabs", "comments"])


def written(path, rows, form="commas"):
    """Writes a table in one of the forms: with `;` numbers have decimal commas."""
    stream = io.StringIO()
    delimiter = {"semicolons": ";", "tabs": "\t"}.get(form, ",")
    if form == "semicolons":
        rows = [[str(cell).replace(".", ",") for cell in row] for row in rows]
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    text = stream.getvalue()
    if form == "comments":
        first, rest = text.split("\n", 1)
        text = f"# bench 3\n{first}\n# lights off\n{rest}"
    path.write_text(text, "utf-8")
    return path
