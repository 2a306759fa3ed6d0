"""What all Markdown documents share."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mdutils.mdutils import MdUtils


def new_document() -> MdUtils:
    """Return an empty document."""
    # mdutils wants to know a file of its own; what it makes is taken as text, and written by write_whole.
    return MdUtils(file_name=str(Path(tempfile.gettempdir()) / "stagemeter"))


def document_text(document: MdUtils) -> str:
    """Return what a document holds."""
    return str(document.get_md_text()).strip() + "\n"


def add_header(document: MdUtils, level: int, title: str) -> None:
    """Add a header without a table of contents."""
    document.new_header(level=level, title=title, add_table_of_contents="n")


def add_table(document: MdUtils, rows: Sequence[Sequence[str]], alignment: list[str] | None = None) -> None:
    """Add a table, its first row the header; the first column is aligned left and the others right by default."""
    columns = len(rows[0])
    document.new_line()
    document.new_table(
        columns=columns,
        rows=len(rows),
        text=[cell for row in rows for cell in row],
        text_align=alignment or ["left", *["right"] * (columns - 1)],
    )


def unbroken(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Keep each cell on one line and apart from the next: MLflow's page breaks at spaces and pads nothing."""
    return [[f"{cell} ".replace(" ", "\u00a0") for cell in row] for row in rows]
