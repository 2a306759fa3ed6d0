"""Tables on a terminal. Needs rich when something is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

from stagemeter.core.escape import printable

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 10_000


class Section(NamedTuple):
    """A table, whose first row is the header, with a title, and lines below it. Each of both may be empty."""

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


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout, without control characters."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(printable(line), markup=False)


def plain_table(rows: Sequence[Sequence[str]]) -> Table:
    """Return rows, the first one the header, as a table: first column left, others right, ``total`` bold."""
    from rich.table import Table
    from rich.text import Text

    header, *body = rows
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(header):
        table.add_column(Text(printable(column)), justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*(Text(printable(cell)) for cell in row), style="bold" if row[0] == "total" else None)
    return table
