"""Processors that resize pages and videos between limits of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError
from stagemeter.models.pages.settings import MOST_PIXELS, PageSettings

#: Largest ratio of a page's sides; processors refuse more.
_LONGEST_PAGE = 200


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Fewest and most pixels of a page, or of all frames of a video together.

    `resizes` tells whether pages are resized at all.
    """

    least: int
    most: int
    resizes: bool = True


def read_pixel_limits(
    settings: PageSettings,
    published: tuple[int, int],
    default: tuple[int, int],
    top_level: bool = True,
) -> PixelLimits:
    """Read the limits of a processor; `published` ones hold without a file, `default` ones in a file without limits.

    ``min_pixels`` and ``max_pixels`` win over ``size``, whose ``shortest_edge`` and ``longest_edge`` are also numbers
    of pixels. Older files write ``size.min_pixels`` and ``size.max_pixels``. Some processors read the former only
    within ``size``, see `top_level`. Source: transformers, ``image_processing_pil_qwen2_vl.py``, ``__init__``.
    """
    read = []
    for index, (name, edge) in enumerate((("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))):
        keys = (*((name,) if top_level else ()), f"size.{edge}", f"size.{name}")
        read.append(
            settings.number(
                *keys, name=name, published=published[index], default=default[index], most=MOST_PIXELS, option=name
            )
        )
    settings.require_order("min_pixels", "max_pixels")
    least, most = read
    return PixelLimits(least, most, settings.flag("do_resize", published=True))


def resized_between(
    limits: PixelLimits, block: int, width: int, height: int, frames: int = 1, span: int = 1
) -> tuple[int, int]:
    """Return the width and height of a page resized to whole blocks within limits, its shape nearly kept.

    A block is the side of a token in pixels. Limits hold for all frames together; a patch spans `span` of them. Source:
    transformers, ``image_processing_pil_qwen2_vl.py`` and ``video_processing_qwen3_vl.py``, ``smart_resize``.
    """
    if not limits.resizes:
        return whole_blocks(block, width, height)
    if max(width, height) > _LONGEST_PAGE * min(width, height):
        raise StagemeterError(
            f"a page of {width} x {height} pixels: one side is more than {_LONGEST_PAGE} times the other, which this "
            "model refuses. Cut the page"
        )
    columns, rows = (round(side / block) * block for side in (width, height))
    taken = round(frames / span) * span * columns * rows
    if taken > limits.most:
        shrink = math.sqrt(frames * width * height / limits.most)
        columns, rows = (max(block, math.floor(side / shrink / block) * block) for side in (width, height))
    elif taken < limits.least:
        stretch = math.sqrt(limits.least / (frames * width * height))
        columns, rows = (math.ceil(side * stretch / block) * block for side in (width, height))
    return columns, rows


def whole_blocks(block: int, width: int, height: int) -> tuple[int, int]:
    """Return the size of a page that is not resized; refuse one that is not made of whole blocks."""
    if width % block or height % block:
        raise StagemeterError(
            f"a page of {width} x {height} pixels: do_resize is false, and the encoder needs sides that are multiples "
            f"of {block}. Resize the page, or set do_resize to true"
        )
    return width, height
