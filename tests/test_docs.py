"""The pages of `docs/` run: their blocks of Python, in order, in an empty folder."""

import csv
import json
import pathlib
import re
import runpy

import matplotlib
import pytest

matplotlib.use("Agg")

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
ALL = sorted(str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md"))


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of a language."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [(text[: m.start()].count("\n") + 1, m[1]) for m in found]


PAGES = [page for page in ALL if blocks(page, "python")]


@pytest.mark.pages
@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.replace("-", "_")}
    for line, source in blocks(page, "python"):
        # Empty lines in front, so that a traceback has the page's line numbers.
        code = compile("\n" * line + source, str(DOCS / f"{page}.md"), "exec")
        exec(code, namespace)
    if page == "start":
        # As its table says, but for another processor's rounding.
        names = "before", "after"
        before, after = (namespace[name].summary("accuracy") for name in names)
        assert after["min"] > before["min"] + 0.05
        assert after["mean"] > before["mean"] + 0.02


@pytest.mark.parametrize("page", ALL)
def test_links_lead_to_files(page):
    path = DOCS / f"{page}.md"
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8"))
    # The page of a tutorial is made from its notebook.
    targets = [t.replace(".md", ".ipynb") if t[0].isdigit() else t for t in targets]
    assert not [t for t in targets if not (path.parent / t).exists()]


@pytest.mark.parametrize(
    "path", sorted(DOCS.glob("tutorials/*.ipynb")), ids=lambda p: p.stem
)
def test_a_tutorial_is_stored_as_it_ran(path):
    notebook = json.loads(path.read_text("utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    # No times of this run, and no folder of the machine that ran it.
    assert not [c for c in cells if "execution" in c["metadata"]]
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr)/", path.read_text("utf-8"))


def test_commands_lead_to_files():
    scripts = set(re.findall(r"(?:examples|benchmarks)/[\w/]+\.(?:py|toml)", written()))
    assert scripts
    assert not [s for s in sorted(scripts) if not (DOCS.parent / s).exists()]


def written() -> str:
    """The text of all pages and tables."""
    files = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.csv")])
    return "\n".join(path.read_text("utf-8") for path in files)


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.csv")), ids=lambda p: p.stem)
def test_every_table_of_results_says_how_it_was_made(path):
    lines = path.read_text("utf-8").splitlines()
    assert re.match(r"# commit: [0-9a-f]{7,}$", lines[0])
    assert re.match(r"# command: .*python ", lines[1])
    rows = list(csv.reader(line for line in lines if not line.startswith("#")))
    assert len({len(row) for row in rows}) == 1
    assert len(set(rows[0])) == len(rows[0])


def test_options_of_commands_exist(capsys, monkeypatch):
    commands = {
        (match[1], option)
        for match in re.finditer(r"python (examples/[\w/]+\.py)(.*)", written())
        for option in re.findall(r"--[\w-]+", match[2])
    }
    assert commands
    for script in sorted({script for script, _ in commands}):
        path = DOCS.parent / script
        monkeypatch.setattr("sys.argv", [str(path), "--help"])
        monkeypatch.syspath_prepend(str(path.parent))
        with pytest.raises(SystemExit):
            runpy.run_path(str(path), run_name="__main__")
        text = capsys.readouterr().out
        for option in (o for s, o in commands if s == script):
            assert option in text, f"{script} {option}"
