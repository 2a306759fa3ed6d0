"""Render ``page.png``, the page that the examples and the MLflow project analyze when they are given none.

An A4 page at 200 dpi in greyscale, set in two columns with the font that comes with Pillow, so that it needs no font of
the system. The text is our own and says what the cost of reading a page consists of.

Usage: ``python examples/make_page.py [OUTPUT]``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

DPI = 200
WIDTH, HEIGHT = 1654, 2339  # A4, 210 mm x 297 mm, rounded to whole pixels
GREYS = 16

MARGIN_X, MARGIN_TOP, MARGIN_BOTTOM = 150, 130, 180
GUTTER = 62
COLUMN = (WIDTH - 2 * MARGIN_X - GUTTER) // 2

INK, FAINT, PAPER = 24, 110, 255
TITLE_SIZE, DECK_SIZE, HEADING_SIZE, BODY_SIZE, SMALL_SIZE = 60, 30, 31, 26, 22
LEADING = 38  # Distance of two baselines; what a column holds takes up multiples of it, so that both columns align.
INDENT = 30

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Block: TypeAlias = tuple[str, str] | tuple[str, Sequence[Sequence[str]]]

TITLE = "What Reading a Page Costs"
DECK = "Where the arithmetic of a document-reading model goes, and why one number is not enough"

LEFT: list[Block] = [
    ("heading", "1  A pipeline, not a model"),
    (
        "first",
        "A model that turns a scanned page into text looks like one network from outside. Inside it is a row of "
        "stages with little in common. A vision encoder looks at the picture, a projector translates what it saw "
        "into the vocabulary of a language model, and that model first reads the whole prompt and then writes the "
        "answer, one token after another.",
    ),
    (
        "body",
        "Each stage has its own shape of work. An encoder multiplies large matrices and keeps the arithmetic units "
        "busy. Writing the answer moves every active weight through memory for each single token, and leaves the "
        "same units waiting. A total hides this difference; a table by stage shows it.",
    ),
    ("heading", "2  The picture decides the input"),
    (
        "first",
        "The cost of the vision part follows from the number of pixels it is given and from nothing that is printed "
        "on the page. A blank sheet costs as much as a newspaper. What matters is how the page is cut into views: "
        "one view of the whole sheet, scaled down, or that view together with a grid of tiles in which small print "
        "stays legible.",
    ),
    (
        "body",
        "Resolution grows faster than one expects. Doubling the dots per inch makes four times as many pixels, as "
        "the table shows for three paper sizes.",
    ),
    (
        "table",
        (
            ("Paper", "100 dpi", "200 dpi", "300 dpi"),
            ("A5", "583 x 827", "1165 x 1654", "1748 x 2480"),
            ("A4", "827 x 1169", "1654 x 2339", "2480 x 3508"),
            ("A3", "1169 x 1654", "2339 x 3307", "3508 x 4961"),
        ),
    ),
    ("caption", "Table 1. Page sizes in pixels, width x height, rounded."),
    (
        "first",
        "A view is divided into square patches, and neighbouring patches are merged into image tokens. The encoder "
        "pays for the patches, the language model for the tokens. A good compressor makes the first number large "
        "and the second one small.",
    ),
    (
        "body",
        "Tiles make the difference between pages large. A small receipt may fit into one view; a full page brings a "
        "global view and up to nine tiles, each of which passes through the whole encoder. Two pages with the same "
        "text can then differ in cost several times over. A report that names no page size and no number of views "
        "cannot be checked, and cannot be compared with another one.",
    ),
]

RIGHT: list[Block] = [
    ("heading", "3  Reading the prompt"),
    (
        "first",
        "In the prefill, the language model sees all image tokens and the words of the question at once. Its matrix "
        "products grow in proportion to the length of the prompt, its attention with the square of it. For a page "
        "of about a thousand tokens the square is still a small part; for a book it is not.",
    ),
    (
        "body",
        "In a mixture of experts, every token passes through a few experts of many. The parameters that are stored "
        "and the parameters that are used then differ by a large factor, and a count that takes one for the other "
        "is off by that factor.",
    ),
    ("heading", "4  Writing the answer"),
    (
        "first",
        "Decoding is a loop. Each step handles one token, looks back at all that came before it, and needs little "
        "arithmetic: two operations per active weight and a bit of attention. Its time is set by the bytes that "
        "travel from memory, the weights and the growing cache of keys and values. Several requests at once share "
        "the trip of the weights, which is why batching pays here and does little for the encoder.",
    ),
    ("heading", "5  Counting with care"),
    (
        "first",
        "A multiplication with the addition that follows is one MAC, and two FLOPs. Many tables mix the two, and a "
        "factor of two is lost without anybody noticing. It helps to state the unit, to keep whole numbers as long "
        "as possible, and to count in more than one way.",
    ),
    (
        "body",
        "Utilization is the counted work divided by the time it took and by the peak of the device. All three need "
        "the same footing: the same stage, the same inputs, and a peak for the number format in use. A headline "
        "peak that assumes sparse matrices is twice what dense ones can reach, and halves the result.",
    ),
    ("heading", "6  What to take away"),
    (
        "first",
        "Ask for the cost of a request, not of a model. Ask where it is spent. Where a number is missing, let the "
        "report say so; a gap that is visible does less harm than a figure that only looks right.",
    ),
    (
        "body",
        "Then measure. The count tells what had to be done, the clock tells how long it took, and the quotient tells "
        "which stage is worth an engineer's week. Keep both, with the page and the settings that they belong to, and "
        "the next comparison is quick.",
    ),
]


def font(size: int) -> Font:
    """Return the font that comes with Pillow, in the given size in pixels."""
    return ImageFont.load_default(size=size)


def break_lines(text: str, face: Font, width: float, indent: float = 0) -> list[list[str]]:
    """Break a paragraph into lines of words, each no wider than `width`, the first one shorter by `indent`."""
    lines: list[list[str]] = [[]]
    for word in text.split():
        room = width - (indent if len(lines) == 1 else 0)
        if lines[-1] and face.getlength(" ".join([*lines[-1], word])) > room:
            lines.append([])
        lines[-1].append(word)
    return lines


class Column:
    """A column of the page, filled from top to bottom on a grid of baselines."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        self.draw = draw
        self.left = left
        self.top = top
        self.width = width
        self.baseline = top + LEADING

    def add(self, kind: str, content: str | Sequence[Sequence[str]]) -> None:
        """Add a block: a heading, a paragraph (``first`` or ``body``, the latter indented), a table or its caption."""
        if not isinstance(content, str):
            self.table(content)
        elif kind == "heading":
            self.heading(content)
        elif kind == "caption":
            self.caption(content)
        else:
            self.paragraph(content, indent=INDENT if kind == "body" else 0)

    def heading(self, text: str) -> None:
        """Set a heading; the space around it, except above the first one of a column, comes to one line."""
        below = LEADING // 4
        if self.baseline > self.top + LEADING:
            self.baseline += LEADING - below
        # The font has no bold cut; a thin stroke stands in for it.
        face = font(HEADING_SIZE)
        self.draw.text((self.left, self.baseline), text, INK, face, anchor="ls", stroke_width=0.45)
        self.baseline += LEADING + below

    def paragraph(self, text: str, indent: int) -> None:
        """Set a paragraph, ragged on the right."""
        face = font(BODY_SIZE)
        for number, words in enumerate(break_lines(text, face, self.width, indent)):
            x = self.left + (indent if number == 0 else 0)
            self.draw.text((x, self.baseline), " ".join(words), INK, face, anchor="ls")
            self.baseline += LEADING

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Set a table over the width of the column: a rule above, below and under the head, numbers to the right."""
        face = font(SMALL_SIZE)
        right = self.left + self.width
        first = 0.13 * self.width
        step = (self.width - first) / (len(rows[0]) - 1)

        self.rule(self.baseline - LEADING // 2 + 8, thickness=3)
        self.baseline += LEADING // 2 + LEADING // 4
        for number, row in enumerate(rows):
            stroke = 0.4 if number == 0 else 0
            self.draw.text((self.left, self.baseline), row[0], INK, face, anchor="ls", stroke_width=stroke)
            for place, cell in enumerate(row[1:]):
                x = right - (len(row) - 2 - place) * step
                self.draw.text((x, self.baseline), cell, INK, face, anchor="rs", stroke_width=stroke)
            if number == 0:
                self.rule(self.baseline + 14, thickness=1)
                self.baseline += 8
            self.baseline += LEADING
        self.rule(self.baseline - LEADING + 14, thickness=3)
        self.baseline += LEADING // 2 - 8

    def rule(self, y: float, thickness: int) -> None:
        """Draw a horizontal line over the width of the column."""
        self.draw.rectangle((self.left, y, self.left + self.width - 1, y + thickness - 1), fill=INK)

    def caption(self, text: str) -> None:
        """Set a caption in small type, with some space below it."""
        self.draw.text((self.left, self.baseline), text, FAINT, font(SMALL_SIZE), anchor="ls")
        self.baseline += 2 * LEADING - LEADING // 4


def draw_head(draw: ImageDraw.ImageDraw) -> int:
    """Draw the title, the line below it and a rule; return where the columns begin."""
    y = MARGIN_TOP + TITLE_SIZE
    draw.text((MARGIN_X, y), TITLE, INK, font(TITLE_SIZE), anchor="ls", stroke_width=1)
    face = font(DECK_SIZE)
    y += 64
    for words in break_lines(DECK, face, WIDTH - 2 * MARGIN_X):
        draw.text((MARGIN_X, y), " ".join(words), FAINT, face, anchor="ls")
        y += LEADING + 6
    y -= 8
    draw.rectangle((MARGIN_X, y, WIDTH - MARGIN_X - 1, y + 1), fill=INK)
    return y + 28


def draw_page() -> Image.Image:
    """Draw the page.

    Returns
    -------
    PIL.Image.Image
        Mode L, 1654 x 2339 pixels.

    Raises
    ------
    ValueError
        If a column has more text than fits on the page.
    """
    page = Image.new("L", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(page)
    top = draw_head(draw)
    for left, blocks in ((MARGIN_X, LEFT), (WIDTH - MARGIN_X - COLUMN, RIGHT)):
        column = Column(draw, left, top, COLUMN)
        for kind, content in blocks:
            column.add(kind, content)
        if column.baseline - LEADING > HEIGHT - MARGIN_BOTTOM:
            raise ValueError(f"a column is {column.baseline - LEADING - HEIGHT + MARGIN_BOTTOM} px too long")
    draw.text((WIDTH / 2, HEIGHT - MARGIN_BOTTOM // 2), "1", FAINT, font(BODY_SIZE), anchor="ms")
    return page


def reduce_greys(page: Image.Image) -> Image.Image:
    """Round the greys to `GREYS` even steps, black and white among them, which makes the file a good deal smaller."""
    step = 255 / (GREYS - 1)
    return page.point([round(round(grey / step) * step) for grey in range(256)])


def main(arguments: Sequence[str]) -> None:
    """Write the page to the path given, or else to ``page.png`` beside this file."""
    target = Path(arguments[0]) if arguments else Path(__file__).with_name("page.png")
    reduce_greys(draw_page()).save(target, optimize=True, dpi=(DPI, DPI))


if __name__ == "__main__":
    main(sys.argv[1:])
