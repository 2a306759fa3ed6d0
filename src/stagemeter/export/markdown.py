"""What all Markdown documents share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdutils.mdutils import MdUtils

from stagemeter.core.escape import markdown_text


def new_document() -> MdUtils:
    """Return an empty document."""
    # mdutils wants to know a file of its own; what it makes is taken as text, and written by write_whole.
    return MdUtils(file_name=str(Path(tempfile.gettempdir()) / "stagemeter"))


def document_text(document: MdUtils) -> str:
    """Return what a document holds."""
    return str(document.get_md_text()).strip() + "\n"


def add_header(document: MdUtils, level: int, title: str) -> None:
    """Add a header without a table of contents."""
    document.new_header(level=level, title=markdown_text(title), add_table_of_contents="n")


def add_paragraph(document: MdUtils, text: str) -> None:
    """Add a paragraph; what is Markdown already, a link or code, is `Marked`."""
    document.new_paragraph(markdown_text(text))


def add_list(document: MdUtils, lines: Iterable[str]) -> None:
    """Add a list; a line that is Markdown already is `Marked`."""
    document.new_list([markdown_text(line) for line in lines])


def add_table(document: MdUtils, rows: Sequence[Sequence[str]], alignment: list[str] | None = None) -> None:
    """Add a table, its first row the header; the first column is aligned left and the others right by default."""
    columns = len(rows[0])
    document.new_line()
    document.new_table(
        columns=columns,
        rows=len(rows),
        text=[markdown_text(cell) for row in rows for cell in row],
        text_align=alignment or ["left", *["right"] * (columns - 1)],
    )


def unbroken(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Keep each cell on one line and apart from the next: MLflow's page breaks at spaces and pads nothing."""
    return [[f"{cell} ".replace(" ", "\u00a0") for cell in row] for row in rows]
