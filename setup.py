"""Give README, as an index shows it, the address of the sources, once there is one.

README.md links to its pictures and pages by their names in the repository. An index
shows the text alone, so that the names there need the address in front.
"""

import pathlib
import re
import runpy

import setuptools

ROOT = pathlib.Path(__file__).parent
NAMES = runpy.run_path(str(ROOT / "keras_pnn" / "_version.py"))
DOCS, SOURCES = NAMES["DOCS_URL"], NAMES["SOURCE_URL"]


def readme() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    if not SOURCES:
        return text
    relative = r"(?![a-z]+:|#)"
    pictures = rf"(!\[[^\]]*\]\(|<img [^>]*src=\"){relative}"
    text = re.sub(pictures, rf"\1{SOURCES}/raw/main/", text)
    return re.sub(rf"(\]\(){relative}", rf"\1{SOURCES}/blob/main/", text)


addresses = {"Documentation": DOCS, "Source": SOURCES}
setuptools.setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls={n: a for n, a in addresses.items() if a},
)
