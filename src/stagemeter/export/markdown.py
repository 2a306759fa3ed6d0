"""Build Markdown documents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdutils.mdutils import MdUtils

from stagemeter.core.escape import markdown_text


def new_document() -> MdUtils:
    """Return an empty document."""
    # mdutils requires the name of a file, although it writes none here.
    return MdUtils(file_name=str(Path(tempfile.gettempdir()) / "stagemeter"))


def document_text(document: MdUtils) -> str:
    """Return the text of a document."""
    return str(document.get_md_text()).strip() + "\n"


def add_header(document: MdUtils, level: int, title: str) -> None:
    """Add a header without a table of contents."""
    document.new_header(level=level, title=markdown_text(title), add_table_of_contents="n")


def add_paragraph(document: MdUtils, text: str) -> None:
    """Add a paragraph. Text that is Markdown already is `Marked`."""
    document.new_paragraph(markdown_text(text))


def add_list(document: MdUtils, lines: Iterable[str]) -> None:
    """Add a list. A line that is Markdown already is `Marked`."""
    document.new_list([markdown_text(line) for line in lines])


def add_table(document: MdUtils, rows: Sequence[Sequence[str]], alignment: list[str] | None = None) -> None:
    """Add a table, the header first. By default, the first column is aligned left and the others right."""
    columns = len(rows[0])
    document.new_line()
    document.new_table(
        columns=columns,
        rows=len(rows),
        text=[markdown_text(cell) for row in rows for cell in row],
        text_align=alignment or ["left", *["right"] * (columns - 1)],
    )


def unbroken(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Keep each cell on one line and apart from the next: MLflow's page breaks at spaces and adds no padding."""
    return [[f"{cell} ".replace(" ", "\u00a0") for cell in row] for row in rows]
