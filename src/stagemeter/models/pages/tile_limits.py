"""Tiles that processors cut pages into: their limits, and views of tiles and of the page as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.models.family import PageRules, PageViews
from stagemeter.models.pages.settings import MOST_TILES, PageSettings
from stagemeter.models.pages.tiling import tile_grid


@dataclass(frozen=True, slots=True)
class TileLimits:
    """How few and how many tiles a page is cut into."""

    fewest: int
    most: int


def read_tile_limits(image: PageSettings, most: int, fewest: int, fewest_of_class: int = 1) -> TileLimits:
    """Read the limits of an image processor, which calls tiles patches.

    Parameters
    ----------
    image : PageSettings
        Its settings.
    most, fewest : int
        Limits without a file, and in a file that leaves them out.
    fewest_of_class : int
        Fewest that are possible: one less would be the page as a whole again.

    Raises
    ------
    StagemeterError
        If a limit is no whole number, or the lower one is above the upper one.
    """
    upper = image.number(
        "max_patches", published=most, least=fewest_of_class, most=MOST_TILES, option="max_tiles", name="max_tiles"
    )
    lower = image.number("min_patches", published=fewest, most=MOST_TILES, name="min_tiles")
    image.require_order("min_tiles", "max_tiles")
    return TileLimits(lower, upper)


def tiles_and_page(image: PageSettings, limits: TileLimits, side: int, tokens: int) -> PageRules:
    """Rules of a processor that cuts pages to square tiles, and shows the page as a whole beside more than one.

    Source: transformers, ``image_processing_got_ocr2.py``, ``crop_image_to_patches``.

    Parameters
    ----------
    image : PageSettings
        Settings of the image processor.
    limits : TileLimits
        How many tiles there may be.
    side, tokens : int
        Side in pixels of a view, and tokens that it becomes.
    """
    image.side("size", published=side, default=_SIDE_OF_CLASS, needed=side)

    def page(width: int, height: int) -> PageViews:
        columns, rows = tile_grid(width, height, side, limits.most, limits.fewest)
        tiles = columns * rows
        views = tiles + 1 if tiles > 1 else 1
        return PageViews(1, views - 1, side, side, (columns, rows), views * tokens)

    return PageRules(page)


#: Side that transformers' ``GotOcr2ImageProcessor`` gives a file that leaves it out.
_SIDE_OF_CLASS = 384
