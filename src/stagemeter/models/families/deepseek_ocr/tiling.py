"""How DeepSeek-OCR cuts a page into views, and how many tokens the views become.

Pure arithmetic on sizes: no pixels, no torch. The rules are those of ``modeling_deepseekocr.py`` in the
``deepseek-ai/DeepSeek-OCR`` checkpoint repository: ``dynamic_preprocess``, ``find_closest_aspect_ratio`` and ``infer``.

A page is seen as one *global view*, the whole page on a square, and in crop mode also as a grid of *local views*,
called tiles. A grid is written ``(columns, rows)``; ``(1, 1)`` stands for "no tiles".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from stagemeter.core.errors import StagemeterError

PATCH_SIZE = 16
"""Side of a vision patch, in pixels."""

DOWNSAMPLE_RATIO = 4
"""How many patches per side the vision tower merges into one token."""

MIN_TILES = 2
"""Fewest tiles of a grid: one tile would repeat the global view."""

MAX_TILES = 9
"""Most tiles of a grid in the authors' transformers code; their vLLM recipe cuts at most `RECIPE_TILES`."""

RECIPE_TILES = 6
"""Most tiles in the authors' vLLM recipe: ``MAX_CROPS`` in ``DeepSeek-OCR-vllm/config.py`` of their repository."""

NO_TILES = (1, 1)
"""The grid of a page that is seen in its global view alone."""

Grid = tuple[int, int]
"""Columns and rows of tiles."""


@dataclass(frozen=True)
class ViewPlan:
    """Which views a page becomes.

    Parameters
    ----------
    width, height : int
        Size of the page in pixels, EXIF orientation applied.
    base_size : int
        Side of the square global view in pixels.
    tile_size : int
        Side of one square tile in pixels.
    grid : tuple of int
        Columns and rows of tiles; ``(1, 1)`` for a page without tiles.

    Raises
    ------
    StagemeterError
        A size or a count is not a positive whole number.
    """

    width: int
    height: int
    base_size: int
    tile_size: int
    grid: Grid

    def __post_init__(self) -> None:
        """Refuse sizes and counts that no page has."""
        require_positive("page width", self.width)
        require_positive("page height", self.height)
        require_positive("base_size", self.base_size)
        require_positive("tile_size", self.tile_size)
        require_grid(self.grid)

    @property
    def global_views(self) -> int:
        """Number of global views: every page has one."""
        return 1

    @property
    def local_views(self) -> int:
        """Number of tiles, 0 for a page without tiles."""
        columns, rows = self.grid
        return 0 if self.grid == NO_TILES else columns * rows

    def image_tokens(self, patch_size: int = PATCH_SIZE, downsample_ratio: int = DOWNSAMPLE_RATIO) -> int:
        """Length of the image span in the prompt, newline and separator tokens included.

        Parameters
        ----------
        patch_size : int
            Side of a vision patch in pixels.
        downsample_ratio : int
            Patches per side that are merged into one token.

        Returns
        -------
        int
            Number of tokens of the global view and of all tiles.

        Raises
        ------
        StagemeterError
            A view is smaller than one patch, or a parameter is not a positive whole number.
        """
        tokens = global_view_tokens(queries_per_side(self.base_size, patch_size, downsample_ratio))
        if self.grid == NO_TILES:
            # The tile size is not used then, so that it may be too small for a patch.
            return tokens
        return tokens + local_grid_tokens(queries_per_side(self.tile_size, patch_size, downsample_ratio), *self.grid)


def plan_views(
    width: int,
    height: int,
    base_size: int,
    tile_size: int,
    crop: bool,
    min_tiles: int = MIN_TILES,
    max_tiles: int = MAX_TILES,
) -> ViewPlan:
    """Decide which views a page becomes.

    Parameters
    ----------
    width, height : int
        Size of the page in pixels, EXIF orientation applied.
    base_size : int
        Side of the square global view in pixels.
    tile_size : int
        Side of one square tile in pixels.
    crop : bool
        Whether a page larger than a tile is also cut into tiles.
    min_tiles, max_tiles : int
        Fewest and most tiles.

    Returns
    -------
    ViewPlan
        The views. A page that fits into one tile on both sides has no tiles, with or without `crop`.

    Raises
    ------
    StagemeterError
        A size is not a positive whole number, or the fewest tiles are more than the most.
    """
    without_tiles = ViewPlan(width, height, base_size, tile_size, NO_TILES)
    if not crop or max(width, height) <= tile_size:
        return without_tiles
    return ViewPlan(width, height, base_size, tile_size, choose_grid(width, height, tile_size, min_tiles, max_tiles))


def choose_grid(
    width: int, height: int, tile_size: int, min_tiles: int = MIN_TILES, max_tiles: int = MAX_TILES
) -> Grid:
    """Pick the grid of 2 to 9 tiles, or of other limits, whose aspect ratio is closest to the page's.

    The arithmetic is deliberately that of ``find_closest_aspect_ratio``, floats included: which grids tie depends on
    how their quotients round.

    Parameters
    ----------
    width, height : int
        Size of the page in pixels.
    tile_size : int
        Side of one square tile in pixels.
    min_tiles, max_tiles : int
        Fewest and most tiles.

    Returns
    -------
    tuple of int
        Columns and rows. Of grids that are equally close, the one with more tiles, if the page's area exceeds half of
        that grid's.

    Raises
    ------
    StagemeterError
        A size is not a positive whole number.
    """
    require_positive("page width", width)
    require_positive("page height", height)
    require_positive("tile_size", tile_size)
    aspect_ratio = width / height
    best_grid = NO_TILES
    best_difference = float("inf")
    for columns, rows in supported_grids(min_tiles, max_tiles):
        difference = abs(aspect_ratio - columns / rows)
        large_enough = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best_grid, best_difference = (columns, rows), difference
    return best_grid


@lru_cache
def supported_grids(min_tiles: int = MIN_TILES, max_tiles: int = MAX_TILES) -> tuple[Grid, ...]:
    """List the grids that a page may be cut into.

    Parameters
    ----------
    min_tiles, max_tiles : int
        Fewest and most tiles, both allowed.

    Returns
    -------
    tuple of tuple of int
        Columns and rows of every grid, by number of tiles. Grids with equally many tiles are in order of their columns;
        with the default limits no two of those are ever equally close to a page, so that their order decides nothing.

    Raises
    ------
    StagemeterError
        A limit is not a positive whole number, or the lower limit exceeds the upper one.
    """
    require_positive("min_tiles", min_tiles)
    require_positive("max_tiles", max_tiles)
    if min_tiles > max_tiles:
        raise StagemeterError(f"min_tiles {min_tiles} exceeds max_tiles {max_tiles}: swap them or raise max_tiles.")
    return tuple(
        (columns, tiles // columns)
        for tiles in range(min_tiles, max_tiles + 1)
        for columns in range(1, tiles + 1)
        if tiles % columns == 0
    )


def queries_per_side(side: int, patch_size: int = PATCH_SIZE, downsample_ratio: int = DOWNSAMPLE_RATIO) -> int:
    """Count the tokens along one side of a square view.

    Parameters
    ----------
    side : int
        Side of the view in pixels.
    patch_size : int
        Side of a vision patch in pixels.
    downsample_ratio : int
        Patches per side that are merged into one token.

    Returns
    -------
    int
        ``ceil((side // patch_size) / downsample_ratio)``, in integer arithmetic.

    Raises
    ------
    StagemeterError
        The view is smaller than one patch, or a parameter is not a positive whole number.
    """
    require_positive("view side", side)
    require_positive("patch_size", patch_size)
    require_positive("downsample_ratio", downsample_ratio)
    if side < patch_size:
        raise StagemeterError(
            f"a view of {side} x {side} pixels is smaller than one patch of {patch_size}: "
            f"use a view size of at least {patch_size}."
        )
    return -(-(side // patch_size) // downsample_ratio)


def global_view_tokens(queries: int) -> int:
    """Count the tokens of the global view.

    Parameters
    ----------
    queries : int
        Tokens along one side of the view, see `queries_per_side`.

    Returns
    -------
    int
        Tokens of all rows, one newline token for each row, and the separator token that closes the view.

    Raises
    ------
    StagemeterError
        `queries` is not a positive whole number.
    """
    require_positive("queries per side", queries)
    return (queries + 1) * queries + 1


def local_grid_tokens(queries: int, columns: int, rows: int) -> int:
    """Count the tokens of all tiles together.

    Tiles are joined before they are read: a row of tokens runs through all columns of the grid.

    Parameters
    ----------
    queries : int
        Tokens along one side of one tile, see `queries_per_side`.
    columns, rows : int
        The grid.

    Returns
    -------
    int
        Tokens of all rows and one newline token for each row; 0 for the ``(1, 1)`` grid, which has no tiles.

    Raises
    ------
    StagemeterError
        A parameter is not a positive whole number.
    """
    require_positive("queries per side", queries)
    require_grid((columns, rows))
    if (columns, rows) == NO_TILES:
        return 0
    return (queries * columns + 1) * (queries * rows)


def require_grid(grid: Grid) -> None:
    """Refuse a grid whose columns or rows are not positive whole numbers.

    Parameters
    ----------
    grid : tuple of int
        Columns and rows.

    Raises
    ------
    StagemeterError
        `grid` is not a pair of positive whole numbers.
    """
    if len(grid) != 2:
        raise StagemeterError(f"a grid is a pair of columns and rows, got {grid!r}.")
    require_positive("grid columns", grid[0])
    require_positive("grid rows", grid[1])


def require_positive(name: str, value: int) -> None:
    """Refuse a size or a count that is not a positive whole number.

    Parameters
    ----------
    name : str
        What the number is, for the message.
    value : int
        The number.

    Raises
    ------
    StagemeterError
        `value` is not an int, or it is below 1.
    """
    # A bool is an int to Python, and a page that is True pixels wide is a mistake in the call.
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StagemeterError(f"{name} must be a whole number of at least 1, got {value!r}.")
