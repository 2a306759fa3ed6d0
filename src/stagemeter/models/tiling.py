"""How a page is cut to tiles."""

from __future__ import annotations


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
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if fewest <= columns * rows <= most]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        larger = distance == nearest and width * height > 0.5 * side**2 * columns * rows
        if distance < nearest or larger:
            best, nearest = (columns, rows), distance
    return best
