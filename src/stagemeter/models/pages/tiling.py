"""How a page is cut to tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache


def tile_grid(width: int, height: int, side: int, most: int, fewest: int = 1) -> tuple[int, int]:
    """Columns and rows of tiles whose shape is nearest to a page's.

    Of shapes that are equally near, the larger one is taken if the page's area exceeds half of its area.

    Source: transformers, ``image_processing_pil_got_ocr2.py`` and ``image_processing_pil_deepseek_ocr2.py``,
    ``get_optimal_tiled_canvas``.

    Parameters
    ----------
    width, height : int
        Size of the page in pixels.
    side : int
        Side of a tile in pixels.
    most, fewest : int
        Tiles between which there are.
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
    """Columns and rows that tiles may form, fewest tiles first, and of as many tiles fewest columns."""
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
    """Columns and rows of tiles that a page fits into best.

    Of grids that need no shrinking, those are taken that enlarge the page least; else those that shrink it least; of
    several the first of the smallest area.

    Source: transformers, ``image_processing_llama4.py``, ``get_best_fit``, and ``image_processing_pil_mllama.py``,
    ``get_optimal_tiled_canvas``.

    Parameters
    ----------
    width, height : int
        Size of the page in pixels.
    side : int
        Side of a tile in pixels.
    grids : sequence of tuple of int
        Columns and rows to choose from.
    single_precision : bool
        Whether the processor compares scales in single precision, which takes more of them for equal.
    largest : bool
        Whether a page that fits is enlarged most instead of least.
    """
    import numpy as np

    number = np.float32 if single_precision else np.float64
    scales = [
        min(number(columns * side) / number(width), number(rows * side) / number(height)) for columns, rows in grids
    ]
    enlarging = [scale for scale in scales if scale >= 1]
    chosen = min(enlarging) if enlarging and not largest else max(scales)
    fitting = [grid for grid, scale in zip(grids, scales, strict=True) if scale == chosen]
    return min(fitting, key=lambda grid: grid[0] * grid[1])
