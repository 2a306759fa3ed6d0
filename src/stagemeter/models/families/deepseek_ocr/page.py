"""A page's pixels: reading a picture, cutting it into views, and showing how it was cut.

The views are those of ``infer`` and ``dynamic_preprocess`` in ``modeling_deepseekocr.py`` of the
``deepseek-ai/DeepSeek-OCR`` checkpoint repository. Reading is stricter than theirs: whatever cannot be read in full is
refused, and transparent paper is white. torch is imported only to make a tensor.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path, require_file
from stagemeter.models.families.deepseek_ocr.tiling import NO_TILES, Grid, ViewPlan, require_grid, require_positive

if TYPE_CHECKING:
    import torch

MID_GREY = (128, 128, 128)
"""Colour of a synthetic page."""

PADDING_COLOUR = (127, 127, 127)
"""What surrounds a page on its global view: the authors' ``int(0.5 * 255)`` for each channel."""

WHITE = (255, 255, 255, 255)
"""The paper below a transparent picture."""

LARGEST_16_BIT = 65535
"""White in a 16-bit greyscale scan."""

PIXEL_MEAN = 0.5
"""Mean of each channel in the authors' normalisation, on a scale of 0 to 1."""

PIXEL_STD = 0.5
"""Standard deviation of each channel in the authors' normalisation, on a scale of 0 to 1."""

GRID_COLOUR = (214, 39, 40)
"""Lines between tiles, and the label behind a tile's number."""

LABEL_COLOUR = (255, 255, 255)
"""A tile's number."""

#: Formats that are programs: Pillow has Ghostscript run them.
_PROGRAMS = frozenset({"EPS"})

# What Pillow's readers are known to raise on damaged files, apart from the errors that are handled by name.
_DECODING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def load_page(path: str | os.PathLike[str]) -> Image.Image:
    """Read a page's picture in full.

    EXIF orientation is applied first; of an animation the first frame is taken. 16-bit greyscale is scaled to 8 bits,
    and whatever is transparent is laid on white.

    Parameters
    ----------
    path : str or os.PathLike
        A picture in any format that Pillow reads.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, upright.

    Raises
    ------
    StagemeterError
        The file is missing, a directory, empty, not a picture, damaged, larger than Pillow's limit against
        decompression bombs, or of a pixel type whose white is unknown.
    """
    source = outside_path(path, "picture of a page")
    _require_filled_file(source)
    with _readable(source), Image.open(source) as picture:
        if picture.format in _PROGRAMS:
            raise UnidentifiedImageError(picture.format)
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    return _to_rgb(upright, source)


def page_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Measure a page as the model will see it.

    The picture is decoded for it: a size that is taken from the header of a damaged file would be a guess.

    Parameters
    ----------
    path : str or os.PathLike
        A picture in any format that Pillow reads.

    Returns
    -------
    tuple of int
        Width and height in pixels, EXIF orientation applied.

    Raises
    ------
    StagemeterError
        As `load_page`.
    """
    return load_page(path).size


def page_count(path: str | os.PathLike[str]) -> int:
    """Count the pages of a picture: the frames of a TIFF, a GIF or another format that holds several.

    Parameters
    ----------
    path : str or os.PathLike
        A picture in any format that Pillow reads.

    Raises
    ------
    StagemeterError
        As `load_page`.
    """
    source = Path(path)
    _require_filled_file(source)
    with _readable(source), Image.open(source) as picture:
        return int(getattr(picture, "n_frames", 1))


def synthetic_page(width: int, height: int) -> Image.Image:
    """Make a page without content.

    Parameters
    ----------
    width, height : int
        Size in pixels.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, mid-grey all over.

    Raises
    ------
    StagemeterError
        A size is not a positive whole number, or the page is larger than Pillow's limit for pictures.
    """
    require_synthetic_size(width, height)
    return Image.new("RGB", (width, height), MID_GREY)


def require_synthetic_size(width: int, height: int) -> None:
    """Refuse a size that no synthetic page is made in, without making one.

    Raises
    ------
    StagemeterError
        A size is not a positive whole number, or the page is larger than Pillow's limit for pictures.
    """
    require_positive("page width", width)
    require_positive("page height", height)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise StagemeterError(
            f"a synthetic page of {width} x {height} has {width * height} pixels, more than the limit of {limit}: "
            "choose a smaller page."
        )


def global_view(page: Image.Image, side: int, stretch: bool = False) -> Image.Image:
    """Lay the whole page on a square.

    Parameters
    ----------
    page : PIL.Image.Image
        Mode RGB.
    side : int
        Side of the view in pixels.
    stretch : bool
        Whether the page is stretched to the square, as the authors do in the modes without crops whose views are at
        most 640 pixels wide; otherwise it keeps its proportions and is padded with grey.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, `side` x `side`.

    Raises
    ------
    StagemeterError
        `side` is not a positive whole number, or the page is so thin that nothing of it would be left.
    """
    require_positive("view side", side)
    if stretch:
        return page.resize((side, side))
    # The rounding is ImageOps.contain's, which then fails on a size of 0.
    if round(min(page.size) / max(page.size) * side) == 0:
        raise StagemeterError(
            f"a page of {page.width} x {page.height} is too thin to be padded to {side} x {side}: "
            "less than a pixel of its shorter side would be left; cut the page into shorter pieces."
        )
    return ImageOps.pad(page, (side, side), color=PADDING_COLOUR)


def tiles(page: Image.Image, grid: Grid, tile_size: int) -> list[Image.Image]:
    """Stretch the page over a grid of tiles and cut it up.

    Parameters
    ----------
    page : PIL.Image.Image
        Mode RGB.
    grid : tuple of int
        Columns and rows.
    tile_size : int
        Side of one square tile in pixels.

    Returns
    -------
    list of PIL.Image.Image
        Row by row, from left to right; mode RGB, `tile_size` x `tile_size` each. Empty for the ``(1, 1)`` grid, which
        has no tiles.

    Raises
    ------
    StagemeterError
        The grid or `tile_size` is not made of positive whole numbers.
    """
    require_grid(grid)
    require_positive("tile_size", tile_size)
    if grid == NO_TILES:
        return []
    columns, rows = grid
    stretched = page.resize((columns * tile_size, rows * tile_size))
    corners = [(column * tile_size, row * tile_size) for row in range(rows) for column in range(columns)]
    return [stretched.crop((left, top, left + tile_size, top + tile_size)) for left, top in corners]


def pixel_tensor(images: Sequence[Image.Image], dtype: torch.dtype) -> torch.Tensor:
    """Stack views of one size into the tensor that the vision stages take.

    Parameters
    ----------
    images : sequence of PIL.Image.Image
        At least one view; mode RGB, square, all of the same side.
    dtype : torch.dtype
        A floating-point type. The normalisation itself runs in float32, as the authors' does.

    Returns
    -------
    torch.Tensor
        Shape (views, 3, side, side), values in [-1, 1].

    Raises
    ------
    StagemeterError
        There are no views, they differ in size, they are not square RGB pictures, or `dtype` holds no fractions.
    """
    import numpy
    import torch

    _require_equal_views(images)
    if not dtype.is_floating_point:
        raise StagemeterError(f"pixels cannot be held as {dtype}: use a floating-point dtype such as torch.bfloat16.")
    pixels = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images]))
    channels_first = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32)
    return channels_first.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD).to(dtype)


def draw_grid(page: Image.Image, plan: ViewPlan, max_side: int = 640) -> Image.Image:
    """Draw how a page is cut, for a person to look at.

    Parameters
    ----------
    page : PIL.Image.Image
        Mode RGB.
    plan : ViewPlan
        The views of this page.
    max_side : int
        Longest side of the drawing in pixels.

    Returns
    -------
    PIL.Image.Image
        The page, made smaller where needed, with the tiles' borders, and their numbers in the order of `tiles`. A page
        without tiles is shown plain, with a border.

    Raises
    ------
    StagemeterError
        `max_side` is not a positive whole number, or `plan` was made for a page of another size.
    """
    require_positive("max_side", max_side)
    if page.size != (plan.width, plan.height):
        raise StagemeterError(
            f"the views were planned for a page of {plan.width} x {plan.height}, but the page is "
            f"{page.width} x {page.height}: plan the views for this page."
        )
    drawing = _shrink(page, max_side)
    canvas = ImageDraw.Draw(drawing)
    columns, rows = plan.grid
    horizontal = _borders(drawing.width, columns)
    vertical = _borders(drawing.height, rows)
    line_width = max(1, round(max(drawing.size) / 300))
    for top, bottom in pairwise(vertical):
        for left, right in pairwise(horizontal):
            canvas.rectangle((left, top, right, bottom), outline=GRID_COLOUR, width=line_width)
    if plan.local_views:
        _number_tiles(canvas, horizontal, vertical)
    return drawing


def _require_filled_file(source: Path) -> None:
    """Refuse whatever is not a regular file with something in it."""
    require_file(source, "picture of a page")
    if source.stat().st_size == 0:
        raise StagemeterError(f"page {source} is empty (0 bytes): write or copy the picture again.")


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turn what Pillow raises while it reads `source` into one clear error.

    Pillow only warns of a picture beyond its limit and refuses at twice the limit; here both refuse.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        reason = str(error) or "Not enough memory for its pixels."
        raise StagemeterError(f"page {source} is too large: {reason} Use a smaller scan of it.") from error
    except PermissionError as error:
        raise StagemeterError(f"page {source} may not be read ({error.strerror}): change its permissions.") from error
    except UnidentifiedImageError as error:
        raise StagemeterError(
            f"page {source} is not a picture that Pillow can read, or it has no pixels: save the page as PNG or JPEG."
        ) from error
    except _DECODING_ERRORS as error:
        raise StagemeterError(
            f"page {source} is damaged or incomplete ({type(error).__name__}: {error}): save or copy the picture again."
        ) from error


def _to_rgb(picture: Image.Image, source: Path) -> Image.Image:
    """Convert any pixel type to 8-bit RGB without losing light greys to clipping."""
    if picture.mode == "F":
        raise StagemeterError(
            f"page {source} holds floating-point pixels, whose white is unknown: save it as 8-bit PNG or JPEG."
        )
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _scale_16_bit(picture, source).convert("RGB")
    if picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, WHITE), opaque).convert("RGB")
    return picture.convert("RGB")


def _scale_16_bit(picture: Image.Image, source: Path) -> Image.Image:
    """Map 0..65535 to 0..255; Pillow's own conversion from mode I clips everything above 255 to white."""
    import numpy

    levels = numpy.asarray(picture).astype(numpy.int64)
    darkest, brightest = int(levels.min()), int(levels.max())
    if darkest < 0 or brightest > LARGEST_16_BIT:
        raise StagemeterError(
            f"page {source} holds grey levels from {darkest} to {brightest}, beyond the 16-bit range of "
            f"0 to {LARGEST_16_BIT}: save it as 8-bit PNG or JPEG."
        )
    transparent_level = picture.info.get("transparency")
    if transparent_level is not None:
        levels[levels == transparent_level] = LARGEST_16_BIT
    # 65535 is 255 x 257; adding half of 257 rounds to the nearest level.
    return Image.fromarray(((levels + 128) // 257).astype(numpy.uint8))


def _require_equal_views(images: Sequence[Image.Image]) -> None:
    """Refuse views that cannot share one tensor."""
    if not images:
        raise StagemeterError("no views were given: a pixel tensor needs at least one.")
    side = images[0].width
    for number, image in enumerate(images):
        if image.mode != "RGB" or image.size != (side, side):
            raise StagemeterError(
                f"view {number} is {image.mode} {image.width} x {image.height}, expected RGB {side} x {side}: "
                "make all views of one tensor with one size."
            )


def _shrink(page: Image.Image, max_side: int) -> Image.Image:
    """Copy a page, made smaller if it exceeds `max_side`."""
    small = page.copy()
    small.thumbnail((max_side, max_side))
    return small


def _borders(length: int, parts: int) -> list[int]:
    """Divide a side into equal parts: the positions of all borders, both ends included."""
    return [round(part * (length - 1) / parts) for part in range(parts + 1)]


def _number_tiles(canvas: ImageDraw.ImageDraw, horizontal: list[int], vertical: list[int]) -> None:
    """Write each tile's number, from 1, into its upper left corner."""
    smallest_side = min(horizontal[1] - horizontal[0], vertical[1] - vertical[0])
    font = ImageFont.load_default(size=min(24, max(8, smallest_side // 5)))
    corners = [(left, top) for top in vertical[:-1] for left in horizontal[:-1]]
    for number, (left, top) in enumerate(corners, start=1):
        _draw_label(canvas, left, top, str(number), font)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    left: int,
    top: int,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write `text` on a filled box, so that it can be read on any page."""
    margin = 3
    # The box is measured at the origin: a font's glyphs do not begin at its anchor.
    ink_left, ink_top, ink_right, ink_bottom = canvas.textbbox((0, 0), text, font=font)
    box = (left, top, left + ink_right - ink_left + 2 * margin, top + ink_bottom - ink_top + 2 * margin)
    canvas.rectangle(box, fill=GRID_COLOUR)
    canvas.text((left + margin - ink_left, top + margin - ink_top), text, font=font, fill=LABEL_COLOUR)
