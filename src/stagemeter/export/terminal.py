"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def wide_console(width: int = 0) -> Console:
    """Return a console on stdout that is at least so many characters wide.

    A line that a narrow terminal wraps can be read; a number that is cut off cannot.
    """
    return Console(width=max(Console().width, width), soft_wrap=True, highlight=False)


def plain_table(rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """Return rows, the first one the header, as a table: first column left, the others right, ``total`` bold."""
    header, *body = rows
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*(Text(cell) for cell in row), style="bold" if row[0] == "total" else None)
    return table
