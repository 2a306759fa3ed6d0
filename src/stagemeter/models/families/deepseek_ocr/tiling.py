"""Views into which DeepSeek-OCR cuts a page, and the tokens that they become.

Pure arithmetic on sizes: no pixels, no torch. The rules are those of ``modeling_deepseekocr.py`` in the
``deepseek-ai/DeepSeek-OCR`` checkpoint repository: ``dynamic_preprocess``, ``find_closest_aspect_ratio`` and ``infer``.
Unlimited-OCR cuts pages the same way.

The *global view* is the whole page on a square. In crop mode, a grid of *local views*, called tiles, joins it. A grid
is written ``(columns, rows)``; ``(1, 1)`` stands for "no tiles".
"""

from __future__ import annotations

from collections.abc import Callable

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import OWN
from stagemeter.models.page_views import PageViews
from stagemeter.models.pages.tiling import TileLimits, tile_grid

#: Side of a vision patch in pixels, and patches per side that the vision tower merges into one token.
PATCH_SIZE, DOWNSAMPLE_RATIO = 16, 4
#: Fewest tiles of a grid: one tile would repeat the global view.
MIN_TILES = 2
#: Most tiles of a grid in the authors' transformers code.
MAX_TILES = 9
#: Most tiles in the authors' vLLM recipe: ``MAX_CROPS`` in ``DeepSeek-OCR-vllm/config.py`` of their repository.
RECIPE_TILES = 6
#: The grid of a page with only a global view.
NO_TILES = (1, 1)


def page_rule(
    base_size: int,
    tile_size: int,
    crops: bool,
    limits: TileLimits,
    patch_size: int = PATCH_SIZE,
    downsample_ratio: int = DOWNSAMPLE_RATIO,
    mode: str = OWN,
) -> Callable[[int, int], PageViews]:
    """Return the function that decides the views of a page of some width and height.

    A page that fits into one tile on both sides has no tiles, with or without `crops`. Sides of views are in pixels.
    """
    global_tokens = global_view_tokens(queries_per_side(base_size, patch_size, downsample_ratio))

    def views(width: int, height: int) -> PageViews:
        if not crops or max(width, height) <= tile_size:
            return PageViews(1, 0, base_size, base_size, NO_TILES, global_tokens, tile_size, mode=mode)
        grid = tile_grid(width, height, tile_size, limits.most, limits.fewest)
        local_tokens = local_grid_tokens(queries_per_side(tile_size, patch_size, downsample_ratio), *grid)
        tokens = global_tokens + local_tokens
        return PageViews(1, grid[0] * grid[1], base_size, base_size, grid, tokens, tile_size, mode=mode)

    return views


def queries_per_side(side: int, patch_size: int = PATCH_SIZE, downsample_ratio: int = DOWNSAMPLE_RATIO) -> int:
    """Return the tokens along one side of a square view: ``ceil((side // patch_size) / downsample_ratio)``."""
    if side < patch_size:
        raise StagemeterError(
            f"a view of {side} x {side} pixels: it is smaller than one patch of {patch_size}. Take views of at least "
            f"{patch_size} pixels a side"
        )
    return -(-(side // patch_size) // downsample_ratio)


def global_view_tokens(queries: int) -> int:
    """Return the tokens of a global view, by its queries per side: a newline ends each row, a separator the view."""
    return (queries + 1) * queries + 1


def local_grid_tokens(queries: int, columns: int, rows: int) -> int:
    """Return the tokens of two or more tiles, by their queries per side: a newline ends each row of the whole grid."""
    return (queries * columns + 1) * (queries * rows)
