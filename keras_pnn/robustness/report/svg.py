"""Turn Matplotlib figures into SVG elements that share one HTML page."""

import io
import re
from xml.etree import ElementTree

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}"
_URL = re.compile(r"url\(#([^)]+)\)")
# Pixels of the page per point of a figure: two figures stand beside each other on a
# page that is 1100 wide.
_PIXELS = 1.15


def svg(figure, prefix: str, caption: str) -> str:
    """Returns a Matplotlib figure as an SVG element for an HTML page.

    Args:
        figure: a Matplotlib figure.
        prefix: what its ids start with; another for each figure of a page.
        caption: its text for screen readers.

    Returns:
        The element, with text as text, without prolog, metadata, namespaces and
        style sheets, the same for the same figure.
    """
    import matplotlib

    stream = io.StringIO()
    options = {"svg.hashsalt": prefix, "svg.fonttype": "none"}
    with matplotlib.rc_context(options):
        figure.savefig(stream, format="svg")
    root = ElementTree.fromstring(stream.getvalue())
    _clean(root)
    _rename(root, prefix)
    width, height = (float(v) for v in root.get("viewBox").split()[2:])
    for name in ("version", "width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", caption)
    # The style sheet that `_clean` removes would have held for the whole page.
    root.set(
        "style",
        "stroke-linejoin:round;stroke-linecap:butt;"
        f"width:{_PIXELS * width:.0f}px;aspect-ratio:{width:g}/{height:g}",
    )
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    for name in list(element.attrib):
        if name.startswith(_LINK):
            element.set(name.removeprefix(_LINK), element.attrib.pop(name))
    for child in list(element):
        if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
            element.remove(child)
        else:
            _clean(child)


def _rename(root, prefix: str) -> None:
    """Gives ids a prefix where something refers to them, and removes the others."""
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "href" and value.startswith("#"):
                used.add(value[1:])
                element.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                used.update(_URL.findall(value))
                element.set(key, _URL.sub(rf"url(#{prefix}-\1)", value))
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}-{name}")
