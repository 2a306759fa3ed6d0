"""Which views a page becomes, and how many tokens the views take."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.core.errors import StagemeterError
from stagemeter.models.families.deepseek_ocr.tiling import (
    MAX_TILES,
    MIN_TILES,
    global_view_tokens,
    local_grid_tokens,
    page_rule,
    queries_per_side,
)
from stagemeter.models.page_views import PageViews
from stagemeter.models.pages.tiling import TileLimits, tile_grid, tile_grids

LIMITS = TileLimits(MIN_TILES, MAX_TILES)
page_sides = st.integers(min_value=1, max_value=20_000)


def views_of(width: int, height: int, base_size: int, tile_size: int, crops: bool) -> PageViews:
    return page_rule(base_size, tile_size, crops, LIMITS)(width, height)


def choose_grid(width: int, height: int, tile_size: int) -> tuple[int, int]:
    return tile_grid(width, height, tile_size, MAX_TILES, MIN_TILES)


def supported_grids() -> list[tuple[int, int]]:
    return tile_grids(MAX_TILES, MIN_TILES)


@pytest.mark.parametrize(("side", "tokens"), [(512, 73), (640, 111), (1024, 273), (1280, 421)])
def test_one_view_modes_take_the_published_number_of_tokens(side: int, tokens: int) -> None:
    expected = PageViews(1, 0, side, side, (1, 1), tokens, side)
    assert views_of(1240, 1754, base_size=side, tile_size=side, crops=False) == expected


def test_gundam_page_takes_273_and_630_tokens() -> None:
    expected = PageViews(1, 6, 1024, 1024, (2, 3), 903, 640)
    assert views_of(1280, 1920, base_size=1024, tile_size=640, crops=True) == expected
    assert global_view_tokens(queries_per_side(1024)) == 273
    assert local_grid_tokens(queries_per_side(640), 2, 3) == 630


@pytest.mark.parametrize(
    ("width", "height", "crop", "grid"),
    [
        (640, 640, True, (1, 1)),
        (128, 128, True, (1, 1)),
        (641, 640, True, (2, 2)),
        (640, 641, True, (2, 2)),
        (4000, 100, True, (9, 1)),
        (100, 4000, True, (1, 9)),
        (4000, 100, False, (1, 1)),
    ],
)
def test_only_pages_beyond_one_tile_are_cut_and_only_in_crop_mode(
    width: int, height: int, crop: bool, grid: tuple[int, int]
) -> None:
    assert views_of(width, height, 1024, 640, crop).tile_grid == grid


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        # 5:4 is as far from 1 (2x2 and 3x3) as from 3:2 (3x2); half the area of 3x2 is 1,228,800 and of 3x3 1,843,200.
        (1000, 800, (2, 2)),
        (1250, 1000, (3, 2)),
        (2000, 1600, (3, 3)),
        # Half of 3x3's area is between these two squares.
        (1357, 1357, (2, 2)),
        (1358, 1358, (3, 3)),
        # 1:2 and 2:1 come with 2 and with 8 tiles; half of 8 tiles is 1,638,400, which is not exceeded at 905 x 1810.
        (905, 1810, (1, 2)),
        (906, 1812, (2, 4)),
        (1812, 906, (4, 2)),
    ],
)
def test_ties_go_to_more_tiles_only_on_large_pages(width: int, height: int, grid: tuple[int, int]) -> None:
    assert choose_grid(width, height, 640) == grid


@pytest.mark.parametrize(("tile_size", "grid"), [(11, (1, 5)), (12, (1, 4)), (13, (1, 4))])
def test_a_tie_needs_more_than_half_the_area(tile_size: int, grid: tuple[int, int]) -> None:
    # 9:40 is half way between 1:5 and 1:4, and its area of 360 is exactly half of five tiles of 12 x 12.
    assert choose_grid(9, 40, tile_size) == grid


@given(width=page_sides, height=page_sides)
def test_grid_is_the_nearest_in_exact_fractions(width: int, height: int) -> None:
    aspect_ratio = Fraction(width, height)
    ratios = {Fraction(columns, tiles // columns) for tiles in range(2, 10) for columns in _divisors(tiles)}
    ranked = sorted((abs(aspect_ratio - ratio), ratio) for ratio in ratios)
    columns, rows = choose_grid(width, height, 640)
    nearest = {ratio for distance, ratio in ranked if distance == ranked[0][0]}
    assert Fraction(columns, rows) in nearest
    if len(nearest) == 1:
        assert columns * rows == _tiles_for(nearest.pop(), width * height)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _tiles_for(ratio: Fraction, area: int) -> int:
    """The most tiles of this shape of which the page fills more than half, or else the fewest."""
    smallest = ratio.numerator * ratio.denominator
    shapes = [smallest * factor**2 for factor in (1, 2, 3) if 2 <= smallest * factor**2 <= 9]
    half_filled = [tiles for tiles in shapes if 2 * area > 640 * 640 * tiles]
    return max(half_filled, default=min(shapes))


@given(width=page_sides, height=page_sides, tile_size=st.integers(16, 2000))
def test_grid_has_two_to_nine_tiles_and_turns_with_the_page(width: int, height: int, tile_size: int) -> None:
    columns, rows = choose_grid(width, height, tile_size)
    assert 2 <= columns * rows <= 9
    views = views_of(width, height, 1024, tile_size, crops=True)
    fits = width <= tile_size and height <= tile_size
    assert views.tile_grid == ((1, 1) if fits else (columns, rows))
    assert views.local_views == (0 if fits else columns * rows)


def test_supported_grids_are_all_22_by_number_of_tiles() -> None:
    grids = supported_grids()
    assert len(grids) == len(set(grids)) == 22
    tiles = [columns * rows for columns, rows in grids]
    assert tiles == sorted(tiles)
    assert (grids[0], grids[-1]) == ((1, 2), (9, 1))
    assert supported_grids() is grids


def test_grids_with_equally_many_tiles_never_tie() -> None:
    # Two grids tie only half way between neighbouring ratios; were their tile counts equal, the order would decide.
    ratios = sorted({Fraction(*grid) for grid in supported_grids()})
    tiles = {ratio: {c * r for c, r in supported_grids() if Fraction(c, r) == ratio} for ratio in ratios}
    assert all(tiles[low].isdisjoint(tiles[high]) for low, high in pairwise(ratios))


@given(
    side=st.integers(1, 100_000),
    patch_size=st.integers(1, 64),
    downsample_ratio=st.integers(1, 16),
)
def test_queries_per_side_rounds_down_then_up(side: int, patch_size: int, downsample_ratio: int) -> None:
    patches = side // patch_size
    if patches == 0:
        with pytest.raises(StagemeterError, match="smaller than one patch"):
            queries_per_side(side, patch_size, downsample_ratio)
    else:
        queries = queries_per_side(side, patch_size, downsample_ratio)
        assert (queries - 1) * downsample_ratio < patches <= queries * downsample_ratio


@given(queries=st.integers(1, 100), columns=st.integers(1, 9), rows=st.integers(1, 9))
def test_spans_are_rows_with_a_newline_each(queries: int, columns: int, rows: int) -> None:
    assert global_view_tokens(queries) == sum(queries + 1 for _ in range(queries)) + 1
    assert local_grid_tokens(queries, columns, rows) == sum(queries * columns + 1 for _ in range(queries * rows))


def test_a_tile_smaller_than_a_patch_matters_only_where_tiles_are_used() -> None:
    assert views_of(5, 5, base_size=1024, tile_size=8, crops=True).image_tokens == 273
    with pytest.raises(StagemeterError, match="8 x 8"):
        views_of(50, 50, base_size=1024, tile_size=8, crops=True)


def test_planning_needs_neither_torch_nor_pillow() -> None:
    program = (
        "import sys, stagemeter.models.families.deepseek_ocr.tiling, stagemeter.models.families.deepseek_ocr.prompt; "
        "sys.exit(', '.join({'torch', 'PIL', 'numpy', 'transformers', 'mlflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"
