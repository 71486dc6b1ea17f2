"""The pages of `docs/` run: their blocks of Python, in order, in an empty folder."""

import pathlib
import re
import runpy

import matplotlib
import pytest

matplotlib.use("Agg")

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGES = (
    "choosing-rho",
    "from-model-to-lab",
    "what-the-numbers-mean",
    "write-a-physical-layer",
)


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of a language."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [(text[: m.start()].count("\n") + 1, m[1]) for m in found]


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.replace("-", "_")}
    found = blocks(page, "python")
    assert found
    for line, source in found:
        # Empty lines in front, so that a traceback has the page's line numbers.
        code = compile("\n" * line + source, str(DOCS / f"{page}.md"), "exec")
        exec(code, namespace)


def test_no_page_is_left_out():
    # A page whose Python would never run would be wrong before long.
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert {page for page in pages if blocks(page, "python")} == set(PAGES)


@pytest.mark.parametrize("page", sorted(path.stem for path in DOCS.glob("*.md")))
def test_links_and_commands_lead_to_files(page):
    text = (DOCS / f"{page}.md").read_text("utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    scripts = re.findall(r"(?:examples|benchmarks|tests)/[\w/]+\.(?:py|toml)", text)
    missing = [t for t in targets if not (DOCS / t).exists()]
    missing += [s for s in scripts if not (DOCS.parent / s).exists()]
    assert not missing


def test_options_of_commands_exist(capsys, monkeypatch):
    text = "\n".join(path.read_text("utf-8") for path in sorted(DOCS.glob("*.md")))
    commands = {
        (match[1], option)
        for match in re.finditer(r"python (examples/[\w/]+\.py)(.*)", text)
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
