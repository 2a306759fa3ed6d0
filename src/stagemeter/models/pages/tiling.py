"""Processors that cut pages into a grid of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import MOST_TILES, PageSettings

#: Side that transformers' ``GotOcr2ImageProcessor`` gives a file without one.
_SIDE_OF_CLASS = 384


@dataclass(frozen=True, slots=True)
class TileLimits:
    """Fewest and most tiles of a page."""

    fewest: int
    most: int


def read_tile_limits(image: PageSettings, most: int, fewest: int) -> TileLimits:
    """Read the limits of an image processor, whose files call tiles patches; `most` and `fewest` are defaults."""
    upper = image.number("max_patches", published=most, most=MOST_TILES, option="max_tiles", name="max_tiles")
    lower = image.number("min_patches", published=fewest, most=MOST_TILES, name="min_tiles")
    image.require_order("min_tiles", "max_tiles")
    return TileLimits(lower, upper)


def tiles_and_page(image: PageSettings, limits: TileLimits, side: int, tokens: int) -> PageRules:
    """Return the rules of square tiles, with a view of the whole page beside more than one tile.

    Source: transformers, ``image_processing_got_ocr2.py``, ``crop_image_to_patches``.
    """
    image.side("size", published=side, default=_SIDE_OF_CLASS, needed=side)
    return PageRules(
        lambda width, height: tiles_beside_page(
            tile_grid(width, height, side, limits.most, limits.fewest), side, tokens
        )
    )


def tiles_beside_page(grid: tuple[int, int], side: int, tokens: int) -> PageViews:
    """Return the views of a grid of tiles, with the whole page beside more than one tile."""
    tiles = grid[0] * grid[1]
    views = tiles + 1 if tiles > 1 else 1
    return PageViews(1, views - 1, side, side, grid, views * tokens)


def tile_grid(width: int, height: int, side: int, most: int, fewest: int = 1) -> tuple[int, int]:
    """Return the columns and rows of tiles whose shape is nearest to a page's.

    Of equally near shapes, the larger one wins if the page has more than half of its area. Sizes are in pixels.
    Source: transformers, ``image_processing_pil_got_ocr2.py`` and ``image_processing_pil_deepseek_ocr2.py``,
    ``get_optimal_tiled_canvas``.
    """
    best, nearest = (1, 1), float("inf")
    for columns, rows in tile_grids(most, fewest):
        distance = abs(width / height - columns / rows)
        larger = distance == nearest and width * height > 0.5 * side**2 * columns * rows
        if distance < nearest or larger:
            best, nearest = (columns, rows), distance
    return best


@cache
def tile_grids(most: int, fewest: int = 1) -> list[tuple[int, int]]:
    """Return the columns and rows that tiles may form: fewest tiles first, then fewest columns."""
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return sorted((grid for grid in grids if grid[0] * grid[1] >= fewest), key=lambda grid: grid[0] * grid[1])


def best_fit(
    width: int,
    height: int,
    side: int,
    grids: Sequence[tuple[int, int]],
    single_precision: bool,
    largest: bool = False,
) -> tuple[int, int]:
    """Return the columns and rows of tiles, from some grids, that a page fits best. Sizes are in pixels.

    Grids that need no shrinking win, and of those the ones that enlarge the page least (or most, with `largest`); else
    those that shrink it least. Of several, the first of the smallest area wins. In `single_precision`, as some
    processors compare scales, more of them are equal. Source: transformers, ``image_processing_llama4.py``,
    ``get_best_fit``, and ``image_processing_pil_mllama.py``, ``get_optimal_tiled_canvas``.
    """
    import numpy as np

    number = np.float32 if single_precision else np.float64
    across, down = _sides(tuple(grids), side)
    scales = np.minimum(across.astype(number) / number(width), down.astype(number) / number(height))
    enlarging = scales[scales >= 1]
    chosen = enlarging.min() if enlarging.size and not largest else scales.max()
    fitting = [grids[int(index)] for index in np.flatnonzero(scales == chosen)]
    return min(fitting, key=lambda grid: grid[0] * grid[1])


@cache
def _sides(grids: tuple[tuple[int, int], ...], side: int) -> Any:
    """Return arrays of the widths and heights of grids of tiles in pixels."""
    import numpy as np

    return side * np.array(grids).T
