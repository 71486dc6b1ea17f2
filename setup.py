"""Give README, as an index shows it, the project's address, once there is one.

README.md links to its pictures and pages by their names in the repository. An index
shows the text alone, so that the names there need the address in front.
"""

import pathlib
import re
import tomllib

import setuptools

ROOT = pathlib.Path(__file__).parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ADDRESS = SETTINGS["tool"]["keras-pnn"]["address"].rstrip("/")


def readme() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    if not ADDRESS:
        return text
    relative = r"(?![a-z]+:|#)"
    pictures = rf"(!\[[^\]]*\]\(|<img [^>]*src=\"){relative}"
    text = re.sub(pictures, rf"\1{ADDRESS}/raw/main/", text)
    return re.sub(rf"(\]\(){relative}", rf"\1{ADDRESS}/blob/main/", text)


setuptools.setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    **({"url": ADDRESS} if ADDRESS else {}),
)
