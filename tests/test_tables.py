import re

import pytest

from keras_pnn import _tables

READ = {
    "commas": "a,I (mA)\n1,0.5\n2,-2e-1\n",
    "semicolons": "a;I (mA)\n1;0,5\n2;-2E-1\n",
    "semicolons, points": "a;I (mA)\n1;0.5\n2;-.2\n",
    "tabs": "a\tI (mA)\r\n1\t0,5\r\n2\t-0,2\r\n",
    "comments and blank lines": "# x\n\na,I (mA)\n # y\n1,0.5\n,\n2,-0.2",
    "quotes": '"a","I (mA)"\n"1","0.5"\n"2","-0.2"\n',
    "empty cells at the end": "a,I (mA),,\n1,0.5,,\n2,-0.2,,\n",
    "announced separator": "sep=;\na;I (mA)\n1;0,5\n2;-0,2\n",
    "headings of numpy.savetxt": "# x\n# a,I (mA)\n1.0e+00,0.5\n2,-0.2\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_a_table_is_read(tmp_path, text, encoding):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(encoding))
    table = _tables.read(path)
    assert table.headings == ["a", "I (mA)"]
    assert table.numbers(0).tolist() == [1, 2]
    assert table.numbers(1).tolist() == [0.5, -0.2]
    lines = text.splitlines()
    first = [lines[line - 1].lstrip('"')[0] for line in table.lines]
    assert first == ["1", "2"] and table.headings[0] in lines[table.heading_line - 1]


BAD = {
    "nothing": ("", "line 1: expected a header"),
    "comments only": ("# a,b\n", "line 1: expected a header"),
    "no headings": ("1,2\n3,4\n", "line 1: expected a header"),
    "other comment above": ("# bench\n1,2\n3,4\n", "line 2: expected a header"),
    "decimal comma under one heading": ("a\n0,05\n", "line 2: expected 1 cells"),
    "decimal commas under two": ("a,b\n1,2\n0,5,0,1\n", "line 3: expected 2 cells"),
    "a cell too many": ("a;b\n1;2\n\n1;2;3\n", "line 4: expected 2 cells"),
    "not a number": ("a,b\n1,2\n1,warm\n", "line 3.*finite number under 'b'"),
    "short line": ("a,b\n1,2\n\n1\n", "line 4.*finite number.*Received: ''"),
    "nan": ("a,b\n1,nan\n", "line 2.*finite number"),
    "infinite": ("a,b\n1,1e999\n", "line 2.*finite number"),
    "underscore": ("a,b\n1,1_0\n", "line 2.*finite number"),
    "quoted decimal comma": ('a,b\n1,"0,5"\n', "line 2.*finite number"),
    "thousands": ("a;b\n1;1.234,5\n", "line 2.*finite number"),
    "both decimal signs": ("a;b\n1;0,5\n1;1.234\n", "line 3: expected decimal commas"),
    "open quote": ('a,b\n1,"2\n3,4\n', "must be a line of a CSV file"),
    "endless cell": (f'a,b\n1,"{"x" * 140_000}\n', "must be a line of a CSV file"),
    "Latin-1": ("a,b\n1,ä\n".encode("latin-1"), "must be a CSV file in UTF-8"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_table_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
        table = _tables.read(path)
        table.numbers(1 % len(table.headings))


@pytest.mark.parametrize(
    ("heading", "unit"),
    [
        ("current_mA", "mA"),
        ("I (mA)", "mA"),
        ("I [ mA ]", "mA"),
        ("I / mA", "mA"),
        ("I in mA", "mA"),
        ("mA", "mA"),
        ("I (A)", "A"),
        ("I (\u00b5A)", "\u03bcA"),
        ("I (\u03bcA)", "\u03bcA"),
        ("gamma", None),
        ("I (ma)", None),
        ("I", None),
    ],
)
def test_unit_of_a_heading(heading, unit):
    assert _tables.unit(heading, ["mA", "A", "\u00b5A"]) == unit
