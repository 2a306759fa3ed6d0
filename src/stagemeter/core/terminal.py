"""Tables on a terminal. Needs rich when something is printed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from io import StringIO
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from stagemeter.core.escape import printable
from stagemeter.core.progress import end_line

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table

_WIDEST = 10_000
#: Columns of a narrow terminal, and between two columns of a table.
_NARROW, _GAP = 80, 2


class Section(NamedTuple):
    """A table, whose first row is the header, with a title, and lines below it. Each may be empty."""

    title: str = ""
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[str] = ()


def print_sections(sections: Iterable[Section]) -> None:
    """Print sections on stdout, a blank line between two of them."""
    for number, section in enumerate(sections):
        if number:
            print()
        if section.rows:
            print_table(section.rows, section.title)
        print_lines(section.lines)


def print_table(rows: Sequence[Sequence[str]], title: str) -> None:
    """Print rows on stdout with a title; the first row is the header."""
    from rich.console import Console
    from rich.text import Text

    end_line()
    if not Console().is_terminal:
        print(plain_text(rows, title))
        return
    table = plain_table(rows)
    # A wrapped line is readable; a number that is cut off is not.
    width = Console(width=_WIDEST).measure(table).maximum
    console = Console(width=max(Console().width, width), soft_wrap=True, highlight=False)
    console.print(Text(printable(title), style="bold"))
    console.print(table)


def plain_text(rows: Sequence[Sequence[str]], title: str) -> str:
    """Return the table as text, without colours and blanks at the ends of lines."""
    from rich.console import Console

    console = Console(width=_WIDEST, color_system=None, file=StringIO())
    table = plain_table(rows)
    console.width = console.measure(table).maximum
    with console.capture() as capture:
        console.print(table)
    # A title of the table's own would wrap at the width of the table.
    return "\n".join([printable(title), *(line.rstrip() for line in capture.get().splitlines())])


def note_lines(notes: Sequence[str], key: Sequence[str] = ()) -> list[str]:
    """Return the notes that matter as lines, and how many others there are; with ``-v`` all."""
    shown = notes if is_verbose() else key
    more = len(notes) - len(shown)
    others = [f"{more} more note{'s' * (more > 1)}: -v, or notes in the report"] if more else []
    return [*(f"note: {note}" for note in shown), *others]


def is_verbose() -> bool:
    """Tell whether ``-v`` was given."""
    return logging.getLogger().isEnabledFor(logging.INFO)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout, without control characters."""
    from rich.console import Console

    end_line()
    console = Console(highlight=False)
    # A pipe gets whole lines, which `grep` finds.
    console.soft_wrap = not console.is_terminal
    for line in lines:
        console.print(printable(line), markup=False)


def plain_table(rows: Sequence[Sequence[str]]) -> Table:
    """Return rows, the first one the header, as a table: first column left, others right, ``total`` bold."""
    from rich.table import Table
    from rich.text import Text

    header, *body = _fitting(rows)
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(header):
        justify: JustifyMethod = "right" if index else "left"
        table.add_column(Text(column), justify=justify, no_wrap=True, vertical="bottom")
    for row in body:
        table.add_row(*(Text(printable(cell)) for cell in row), style="bold" if row[0] == "total" else None)
    return table


def _fitting(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return rows whose headers take several lines where a narrow terminal would not hold the table otherwise."""
    titles, body = [printable(title) for title in rows[0]], rows[1:]
    cells = [max((len(row[column]) for row in body), default=0) for column in range(len(titles))]
    widths = [max(len(title), cell) for title, cell in zip(titles, cells, strict=True)]
    # A column is no narrower than its cells, and than the longest word of its title.
    least = [max(cell, *map(len, title.split() or [""])) for title, cell in zip(titles, cells, strict=True)]
    while sum(widths) + _GAP * (len(widths) - 1) > _NARROW and widths != least:
        widest = max(range(len(widths)), key=lambda column: widths[column] - least[column])
        widths[widest] -= 1
    wrapped = (wrap(title, width, break_on_hyphens=False) for title, width in zip(titles, widths, strict=True))
    return [["\n".join(lines) for lines in wrapped], *body]
