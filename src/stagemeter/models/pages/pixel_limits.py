"""Pixels between which processors resize pages and videos."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError
from stagemeter.models.pages.settings import MOST_PIXELS, PageSettings

#: How many times longer one side of a page may be than the other, as the processors have it.
_LONGEST_PAGE = 200


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Pixels between which a page, or all frames of a video together, are resized.

    Attributes
    ----------
    least, most : int
        The limits.
    resizes : bool
        Whether pages are resized at all.
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
    """Read the limits of a processor.

    Source: transformers, ``image_processing_pil_qwen2_vl.py``, ``__init__``: ``min_pixels`` and ``max_pixels`` go over
    ``size``, whose ``shortest_edge`` and ``longest_edge`` are numbers of pixels, too. Older files write
    ``size.min_pixels`` and ``size.max_pixels``.

    Parameters
    ----------
    settings : PageSettings
        Settings of the processor.
    published : tuple of int
        Limits where there is no file.
    default : tuple of int
        Limits where the file gives none, which are those of transformers' class.
    top_level : bool
        Whether the processor looks at ``min_pixels`` and ``max_pixels`` outside of ``size``.

    Raises
    ------
    StagemeterError
        If a limit is no whole number, the lower one is above the upper one, or ``size`` gives one of them alone.
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
    """Width and height that a page is resized to: whole blocks, within the limits, its shape kept as well as may be.

    Source: transformers, ``image_processing_pil_qwen2_vl.py`` and ``video_processing_qwen3_vl.py``, ``smart_resize``.

    Parameters
    ----------
    limits : PixelLimits
        The limits, of all frames together.
    block : int
        Side in pixels of what becomes one token.
    width, height : int
        Size of the page, or of a frame, in pixels.
    frames, span : int
        Frames, and as how many of them they are counted at a time.

    Raises
    ------
    StagemeterError
        If one side is more than 200 times the other, which the processors refuse; or if pages are not resized, and
        this one is not made of whole blocks.
    """
    if not limits.resizes:
        return whole_blocks(block, width, height)
    if max(width, height) > _LONGEST_PAGE * min(width, height):
        raise StagemeterError(
            f"a page of {width} x {height} pixels: this model takes none with one side more than {_LONGEST_PAGE} times "
            "the other"
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
    """Return the size of a page that is not resized.

    Raises
    ------
    StagemeterError
        If a side of it is no multiple of the block's, which the processors fail on.
    """
    if width % block or height % block:
        raise StagemeterError(
            f"a page of {width} x {height} pixels: do_resize is false, and the encoder takes sides that are multiples "
            f"of {block} alone; resize the page, or set do_resize to true"
        )
    return width, height
