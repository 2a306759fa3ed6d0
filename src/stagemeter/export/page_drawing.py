"""A page drawn with the tiles that it is cut into, for a person to look at."""

from __future__ import annotations

from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

#: Colours of borders and boxes behind numbers, and of the numbers.
GRID_COLOUR, LABEL_COLOUR = (214, 39, 40), (255, 255, 255)


def draw_grid(page: Image.Image, grid: tuple[int, int], max_side: int = 640) -> Image.Image:
    """Draw a page's tiles on a copy of it: their borders, and their numbers row by row.

    The page has mode RGB, and the grid is columns and rows. A page without tiles, ``(1, 1)``, gets only a border. A
    copy whose longest side exceeds `max_side` pixels is made smaller.
    """
    drawing = page.copy()
    drawing.thumbnail((max_side, max_side))
    canvas = ImageDraw.Draw(drawing)
    columns, rows = grid
    horizontal = _borders(drawing.width, columns)
    vertical = _borders(drawing.height, rows)
    line_width = max(1, round(max(drawing.size) / 300))
    for top, bottom in pairwise(vertical):
        for left, right in pairwise(horizontal):
            canvas.rectangle((left, top, right, bottom), outline=GRID_COLOUR, width=line_width)
    if grid != (1, 1):
        _number_tiles(canvas, horizontal, vertical)
    return drawing


def _borders(length: int, parts: int) -> list[int]:
    """Return the borders of equal parts of a side, both ends included."""
    return [round(part * (length - 1) / parts) for part in range(parts + 1)]


def _number_tiles(canvas: ImageDraw.ImageDraw, horizontal: list[int], vertical: list[int]) -> None:
    """Write each tile's number, from 1, into its upper left corner."""
    smallest_side = min(horizontal[1] - horizontal[0], vertical[1] - vertical[0])
    font = ImageFont.load_default(size=min(24, max(8, smallest_side // 5)))
    corners = [(left, top) for top in vertical[:-1] for left in horizontal[:-1]]
    for number, (left, top) in enumerate(corners, start=1):
        _draw_label(canvas, left, top, str(number), font)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    left: int,
    top: int,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write `text` on a filled box, so that it can be read on any page."""
    margin = 3
    # The box is measured at the origin: a font's glyphs do not begin at its anchor.
    ink_left, ink_top, ink_right, ink_bottom = canvas.textbbox((0, 0), text, font=font)
    box = (left, top, left + ink_right - ink_left + 2 * margin, top + ink_bottom - ink_top + 2 * margin)
    canvas.rectangle(box, fill=GRID_COLOUR)
    canvas.text((left + margin - ink_left, top + margin - ink_top), text, font=font, fill=LABEL_COLOUR)
