"""Build Markdown documents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdutils.mdutils import MdUtils

from stagemeter.core.escape import markdown_text


class Document:
    """A Markdown document, whose text is `str` of it. Text that is Markdown already is `Marked`."""

    def __init__(self) -> None:
        # mdutils requires the name of a file, although it writes none here.
        self._text = MdUtils(file_name=str(Path(tempfile.gettempdir()) / "stagemeter"))

    def __str__(self) -> str:
        return str(self._text.get_md_text()).strip() + "\n"

    def header(self, level: int, title: str) -> None:
        """Add a header without a table of contents."""
        self._text.new_header(level=level, title=markdown_text(title), add_table_of_contents="n")

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self._text.new_paragraph(markdown_text(text))

    def items(self, lines: Iterable[str]) -> None:
        """Add a list."""
        self._text.new_list([markdown_text(line) for line in lines])

    def section(self, title: str, lines: Sequence[str]) -> None:
        """Add a header and a list; nothing without lines."""
        if lines:
            self.header(2, title)
            self.items(lines)

    def table(self, rows: Sequence[Sequence[str]], alignment: list[str] | None = None) -> None:
        """Add a table, the header first. By default, the first column is aligned left and the others right."""
        columns = len(rows[0])
        self._text.new_line()
        self._text.new_table(
            columns=columns,
            rows=len(rows),
            text=[markdown_text(cell) for row in rows for cell in row],
            text_align=alignment or ["left", *["right"] * (columns - 1)],
        )


def abreast(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Turn rows into columns: MLflow's page of a run shows the beginning of a description, which has few lines."""
    return [list(column) for column in zip(*rows, strict=True)]


def unbroken(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Keep each cell on one line and apart from the next: MLflow's page breaks at spaces and adds no padding."""
    return [[f"{cell} ".replace(" ", "\u00a0") for cell in row] for row in rows]
