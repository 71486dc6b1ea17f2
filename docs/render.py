"""Render what the pages of the site do not hold themselves.

MkDocs calls the `on_…` functions as hooks. Griffe, which reads the docstrings, loads
`Docstrings` as an extension. Together they fill in

- the tables of results, and single figures of them, from CSV files;
- the tutorials, from their notebooks;
- the names of the package, as links to the reference.
"""

import csv
import json
import pathlib
import re
import runpy
import textwrap

import griffe
from mkdocs.structure.files import File

DOCS = pathlib.Path(__file__).parent
DOCUMENTED = {
    name
    for page in DOCS.glob("reference/*.md")
    for name in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.M)
}


class Results:
    """A table of results, with the commit and the commands that made it.

    The file begins with lines of comments: `# commit: …`, one or more
    `# command: …`, and after an empty `#` the sentences that belong to these figures.
    """

    def __init__(self, path: pathlib.Path):
        lines = path.read_text("utf-8").splitlines()
        comments = [line[1:].strip() for line in lines if line.startswith("#")]
        head, _, self.note = "\n".join(comments).partition("\n\n")
        self.commands = re.findall(r"^command: (.*)", head, re.M)
        self.commit = re.search(r"^commit: (\w+)$", head, re.M)[1]
        rows = csv.reader(line for line in lines if not line.startswith("#"))
        self.columns, *self.rows = rows
        self.name = path.name

    def cell(self, row: str, column: str) -> str:
        """The figure of one row and column."""
        found = {cells[0].strip("*"): cells for cells in self.rows}
        return found[row][self.columns.index(column)]

    def markdown(self) -> str:
        rule = ["---"] + ["--:"] * (len(self.columns) - 1)
        rows = [self.columns, rule, *self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
        commands = "\n".join(self.commands)
        source = f"[Data]({self.name}), made at commit `{self.commit}` by:"
        return f"{table}\n\n{source}\n\n```sh\n{commands}\n```\n\n{self.note}"


def linked(markdown: str) -> str:
    """Links `pnn.name` to the reference, but in blocks of code."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)

    def link(match: re.Match) -> str:
        name = f"keras_pnn.{match[1]}"
        return f"[{match[0]}][{name}]" if name in DOCUMENTED else match[0]

    parts[::2] = [
        re.sub(r"(?<!\[)`pnn\.([\w.]+)(?:\([^`]*\))?`(?!\])", link, part)
        for part in parts[::2]
    ]
    return "".join(parts)


def notebook(path: pathlib.Path) -> str:
    """The Markdown of a notebook with its outputs."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            data = {kind: "".join(value) for kind, value in data.items()}
            if "image/png" in data:
                image = data["image/png"].replace("\n", "")
                parts.append(f"![Output](data:image/png;base64,{image})")
            elif "text/html" in data:
                parts.append(f"<div>{data['text/html']}</div>")
            else:
                parts.append(f"```text\n{data['text/plain'].rstrip()}\n```")
    return "\n\n".join(parts)


def notebooks() -> list[pathlib.Path]:
    return sorted(DOCS.glob("tutorials/*.ipynb"))


def on_config(config):
    addresses = runpy.run_path(str(DOCS.parent / "keras_pnn" / "_version.py"))
    config.site_url, config.repo_url = addresses["DOCS_URL"], addresses["SOURCE_URL"]
    for entry in config.nav:
        entry.get("Tutorials", []).extend(
            f"tutorials/{path.stem}.md" for path in notebooks()
        )


def on_files(files, config):
    for path in notebooks():
        name = f"tutorials/{path.stem}.md"
        files.append(File.generated(config, name, content=notebook(path)))


def on_page_markdown(markdown, page, **_):
    folder = (DOCS / page.file.src_uri).parent

    def fill(match: re.Match) -> str:
        path, *cell = match[1].split(" : ")
        results = Results(folder / path)
        return results.cell(*cell) if cell else results.markdown()

    return linked(re.sub(r"\{\{ (.*?) \}\}", fill, markdown, flags=re.S))


class Docstrings(griffe.Extension):
    """Turns the doctests of docstrings into blocks of code, and names into links."""

    def on_object(self, *, obj, **_):
        if obj.docstring is None:
            return
        text = re.sub(
            r"^( *)(Example|Reference)s?:$",
            r"\1**\2**\n",
            obj.docstring.value,
            flags=re.M,
        )
        # What is indented would be a block of code.
        text = re.sub(
            r"(?<=\*\*Reference\*\*\n\n)(?: +\S.*\n?)+",
            lambda m: textwrap.dedent(m[0]),
            text,
        )
        # A doctest ends at an empty line.
        text = re.sub(
            r"^( *)(>>> (?:.|\n(?! *\n))*)",
            lambda m: f"{m[1]}```pycon\n{m[1]}{m[2]}\n{m[1]}```",
            text,
            flags=re.M,
        )
        obj.docstring.value = linked(text)
