"""Write a robustness result as one self-contained HTML file."""

import io
import re
from xml.etree import ElementTree

from keras_pnn._display import escaped
from keras_pnn._version import DOCS_URL
from keras_pnn.robustness.report.explanations import anchor, explanation, link
from keras_pnn.robustness.report.figures import figures
from keras_pnn.robustness.report.sections import sections

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}"
_URL = re.compile(r"url\(#([^)]+)\)")
# Pixels of the page per point of a figure: two figures fit side by side on a page that
# is 1100 pixels wide.
_PIXELS = 1.15

# Makes browsers refuse scripts and external content.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff;
  --line: #d0d7de; --head: #f3f5f7; --accent: #0b5c8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b1;
  --page: #14181d; --line: #3a424b; --head: #20262d; --accent: #7cc0ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.4rem; padding-top: 0.6rem;
  border-top: 2px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.1rem 0 0.2rem; overflow-wrap: anywhere; }
p { margin: 0.3rem 0 0.9rem; max-width: 48rem; overflow-wrap: break-word; }
header p { overflow-wrap: anywhere; }
.meaning, figcaption { color: var(--soft); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem;
  margin: 0.8rem 0; padding: 0; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: 0.8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: 0.88rem; min-width: 18rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.2rem 0; }
th, td { padding: 0.28rem 0.7rem; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; }
thead th { background: var(--head); border-bottom: 2px solid var(--line); }
tbody th, thead th:first-child, thead td { text-align: left; font-weight: 500; }
thead td { background: var(--head); border-bottom: 2px solid var(--line); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.tables > .scroll { max-width: 100%; }
figure { margin: 0.4rem 0; padding: 0.7rem; border: 1px solid var(--line);
  border-radius: 6px; background: #ffffff; max-width: 100%; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption { color: #57606a; font-size: 0.85rem; max-width: 36rem;
  margin-top: 0.4rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1.2rem;
  font-size: 0.9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@page { size: A4; margin: 16mm 14mm; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #333; --page: #fff;
    --line: #999; --head: #eee; --accent: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2 { margin-top: 1.2rem; break-after: avoid; }
  .meaning { break-inside: avoid; break-after: avoid; }
  .figures, .tables { display: block; }
  .tables > .scroll { display: inline-block; vertical-align: top; margin-right: 6mm; }
  figure, .scroll, dl { break-inside: avoid; }
  figure { border: none; padding: 0; }
  figure svg { max-height: 130mm; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.35rem; }
  thead { display: table-header-group; }
}
"""


def html(result) -> str:
    """Returns a `RobustnessResult` as an HTML page with its plots inside.

    The page has no script, and loads no external content.
    """
    drawn: dict[str, list[str]] = {}
    for index, (key, caption, ax) in enumerate(figures(result), start=1):
        # Matplotlib's line breaks and indents make up a tenth of a file.
        image = re.sub(r">\s+<", "><", svg(ax.figure, f"f{index}", caption))
        drawn.setdefault(key, []).append(
            f"<figure>\n{image}\n<figcaption>{escaped(caption)}</figcaption>\n</figure>"
        )
    found = sections(result)
    parts = {f"section-{i}": part for i, part in enumerate(found)}
    names = ", ".join(result.models)
    links = "".join(
        f'<li><a href="#{place}">{escaped(part.title)}</a></li>'
        for place, part in parts.items()
    )
    body = "\n".join(
        _section(place, part, drawn.get(part.key)) for place, part in parts.items()
    )
    if not DOCS_URL:
        body += "\n" + _meanings(found)
        links += '<li><a href="#meanings">What the numbers mean</a></li>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Robustness report: {escaped(names)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Robustness report</h1>
<p>{escaped(names)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _section(place: str, part, images: list[str] | None) -> str:
    lines = [f'<section id="{place}">', f"<h2>{escaped(part.title)}</h2>"]
    lines += [f"<p>{escaped(paragraph)}</p>" for paragraph in part.text]
    more = f'<a href="{link(part.key)}">What these numbers mean</a>'
    lines.append(f'<p class="meaning">{escaped(part.meaning)} {more}</p>')
    if images:
        lines += ['<div class="figures">', *images, "</div>"]
    if part.tables:
        tables = (table.html() for table in part.tables)
        lines += ['<div class="tables">', *tables, "</div>"]
    if part.lines:
        pairs = (
            f"<dt>{escaped(key)}</dt><dd>{escaped(value)}</dd>"
            for key, value in part.lines.items()
        )
        lines += ["<dl>", *pairs, "</dl>"]
    return "\n".join([*lines, "</section>"])


def _meanings(parts: list) -> str:
    """Returns the explanations that the sections link to, each once."""
    entries = {anchor(part.key): explanation(part.key) for part in parts}
    lines = (
        f'<h3 id="{place}">{escaped(title)}</h3>\n<p>{escaped(words)}</p>'
        for place, (title, words) in entries.items()
    )
    heading = "<h2>What the numbers mean</h2>"
    return "\n".join(['<section id="meanings">', heading, *lines, "</section>"])


def svg(figure, prefix: str, caption: str) -> str:
    """Returns a Matplotlib figure as an SVG element that shares a page with others.

    Text stays text; prolog, metadata, namespaces and style sheets are removed. Ids
    start with `prefix`; `caption` is for screen readers.
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
    # The style sheet that `_clean` removes would have applied to the whole page.
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
    """Adds a prefix to ids that something refers to, and removes other ids."""
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
