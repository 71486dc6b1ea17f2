"""What is said of the package in several places agrees."""

import pathlib
import re

import pytest

import keras_pnn
from keras_pnn import _version

ROOT = pathlib.Path(__file__).resolve().parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_version():
    version = keras_pnn.__version__
    assert f"\nversion: {version}\n" in text("CITATION.cff")
    assert f"\n## {version}\n" in text("CHANGELOG.md")


def test_address():
    found = re.findall(r"^repository-code: (\S+)$", text("CITATION.cff"), re.M)
    assert found == [_version.SOURCE_URL] * bool(_version.SOURCE_URL)


@pytest.mark.parametrize("name", ["setup.cfg", ".github/workflows/ci.yml"])
def test_interpreters(name):
    # Those of the matrix that nox runs, and no others.
    tested = set(re.findall(r'"(3\.\d+)"', text("noxfile.py")))
    pattern = r'Python :: (3\.\d+)|python: "(3\.\d+)"'
    assert {a or b for a, b in re.findall(pattern, text(name))} == tested


def test_pictures_of_readme_are_packaged():
    names = re.findall(r'(?:!\[[^\]]*\]\(|src=")([^)"]+)', text("README.md"))
    relative = [n for n in names if not n.startswith("http")]
    packaged = re.findall(r"^graft (\S+)$", text("MANIFEST.in"), re.M)
    assert relative
    for name in relative:
        assert (ROOT / name).is_file() and name.split("/")[0] in packaged
