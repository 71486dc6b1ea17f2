"""Write a robustness result as text for the terminal."""

import io

from keras_pnn.robustness.report.sections import sections

_WIDTH = 100
_LABEL_WIDTH = 36


def text(result, short: bool = False) -> str:
    """Returns a `RobustnessResult` as tables of text, 100 characters wide.

    Its lines are plain Unicode, without colours. The short form ends after the summary.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=_WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for section in sections(result)[: 2 if short else None]:
        console.rule(Text(section.title), characters="━", align="left")
        for paragraph in filter(None, (*section.text, section.meaning)):
            console.print(Padding(Text(paragraph), (0, 0, 0, 2)))
        for table in section.tables:
            if table.title:
                console.print(Text(table.title))
            for part in _fitting(table):
                console.print(part)
        for key, value in section.lines.items():
            console.print(Padding(Text(f"{key}: {value}"), (0, 0, 0, 2)))
        console.print()
    lines = stream.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _fitting(table):
    """Yields rich tables with as many columns each as fit on a line."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    rows = [table.columns, *table.rows]
    widths = [
        max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)
    ]
    # Each column has a blank on either side and a line; the table one line more.
    room = _WIDTH - min(widths[0], _LABEL_WIDTH) - 4
    groups, used = [[]], 0
    for index, width in enumerate(widths[1:], start=1):
        if groups[-1] and used + width + 3 > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += width + 3
    for group in groups:
        shown = Table(header_style="", box=box.ROUNDED)
        shown.add_column(
            Text(table.columns[0]), max_width=_LABEL_WIDTH, overflow="fold"
        )
        for index in group:
            heading = Text(table.columns[index])
            shown.add_column(heading, justify="right", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(row[index]) for index in (0, *group)))
        yield shown
