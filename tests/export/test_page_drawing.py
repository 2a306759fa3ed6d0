"""The drawing of a page with its tiles."""

from __future__ import annotations

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagemeter.export.page_drawing import draw_grid

WHITE = (255, 255, 255)


def test_drawing_shows_borders_and_numbers_and_leaves_the_page_alone() -> None:
    page = Image.new("RGB", (1280, 1920), WHITE)
    drawing = draw_grid(page, (2, 3))
    assert page.getcolors() == [(1280 * 1920, WHITE)]
    assert drawing.size == (427, 640)
    reds = numpy.all(numpy.asarray(drawing) == (214, 39, 40), axis=2)
    # A scan line between the labels crosses the borders of two columns, and one through a column those of three rows.
    assert _runs(reds[180]) == 3
    assert _runs(reds[:, 100]) == 4
    assert reds[:12, :12].all(axis=1).any()


def _runs(line: numpy.ndarray) -> int:
    return int(line[0]) + int(numpy.count_nonzero(line[1:] & ~line[:-1]))


def test_drawing_of_a_page_without_tiles_has_a_border_alone() -> None:
    page = Image.new("RGB", (300, 200), WHITE)
    drawing = draw_grid(page, (1, 1))
    assert drawing.size == (300, 200)
    assert drawing.crop((2, 2, 298, 198)).getcolors() == [(296 * 196, WHITE)]
    assert drawing.getpixel((0, 0)) == (214, 39, 40)


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(1, 1500),
    height=st.integers(1, 1500),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    max_side=st.integers(1, 200),
)
def test_any_grid_can_be_drawn(width: int, height: int, grid: tuple[int, int], max_side: int) -> None:
    drawing = draw_grid(Image.new("RGB", (width, height)), grid, max_side)
    assert max(drawing.size) <= max_side
