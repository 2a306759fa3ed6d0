"""Pictures of pages: read safely, measured, or made up blank. Pages of PDFs are among them.

A picture that cannot be read in full is refused. Transparent paper is white.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path, require_file
from stagemeter.core.pdf import DEFAULT_DPI, is_pdf, pdf_pages, render_page, split_numbers
from stagemeter.core.video import is_video

MID_GREY = (128, 128, 128)
#: The paper below a transparent picture.
WHITE = (255, 255, 255, 255)
#: White in a 16-bit greyscale scan.
LARGEST_16_BIT = 65535
#: Formats that are programs: Pillow has Ghostscript run them.
_PROGRAMS = frozenset({"EPS"})
#: EXIF orientations that exchange width and height.
_ON_ITS_SIDE = (5, 6, 7, 8)

# Errors that Pillow's readers raise on damaged files, beside those that are handled by name.
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


def load_page(path: str | os.PathLike[str], dpi: int | None = None) -> Image.Image:
    """Read a page's picture in full: RGB, upright, and the first frame of an animation.

    A page of a PDF is rendered at `dpi` dots per inch. 16-bit greyscale is scaled to 8 bits, and transparent parts
    become white. Refused are files that are missing, empty, damaged or no pictures, pixel types whose white is unknown,
    and sizes beyond Pillow's limit against decompression bombs.
    """
    if is_pdf(path):
        page_size(path, dpi)
        return render_page(path, dpi or DEFAULT_DPI)
    if is_video(path):
        raise StagemeterError(
            f"{os.fspath(path)}: is a video. `stagemeter tokens` says its frames and size: give --video-frames and "
            "--page-size"
        )
    source = outside_path(path, "picture of a page")
    _require_filled_file(source)
    with readable(source), Image.open(source) as picture:
        if picture.format in _PROGRAMS:
            raise UnidentifiedImageError(picture.format)
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    return _to_rgb(upright, source)


def page_size(path: str | os.PathLike[str], dpi: int | None = None) -> tuple[int, int]:
    """Return the width and height of a page in pixels, EXIF orientation applied.

    A picture is decoded in full, since the header of a damaged file can be wrong, and again only if it has changed. A
    page of a PDF is not rendered: `dpi` gives its size.
    """
    if is_pdf(path):
        return _sizes_of_pdf(path, dpi)[0]
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return load_page(path).size
    return _size_at(os.fspath(path), (state.st_ino, state.st_mtime_ns, state.st_size))


def named_sizes(path: str | os.PathLike[str], dpi: int | None = None) -> list[tuple[int, int]]:
    """Return the sizes of the pages that a path names, see `page_size`: of a file without numbers, the first page's."""
    return [page_size(path, dpi)] if split_numbers(path)[1] is None else _sizes_of_pdf(path, dpi)


def _sizes_of_pdf(path: str | os.PathLike[str], dpi: int | None) -> list[tuple[int, int]]:
    sizes = [page.pixels(dpi or DEFAULT_DPI) for page in pdf_pages(path)]
    for size in sizes:
        require_synthetic_size(*size, os.fspath(path))
    return sizes


# As many pictures as a request may have on the command line.
@lru_cache(maxsize=128)
def _size_at(path: str, state: tuple[int, ...]) -> tuple[int, int]:
    return load_page(path).size


def encoded_size(data: bytes, name: str) -> tuple[int, int]:
    """Return the width and height of an encoded picture, EXIF orientation applied, from its header alone.

    Pixels are not decoded, so a damaged picture can have a size. `name` is that of the picture in errors.
    """
    with readable(Path(name)), Image.open(BytesIO(data)) as picture:
        if picture.format in _PROGRAMS:
            raise UnidentifiedImageError(picture.format)
        width, height = picture.size
        # Pillow turns a TIFF itself, and decodes a PNG as a whole to find EXIF data behind its pixels.
        if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
            return width, height
        turned = picture.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    return (height, width) if turned else (width, height)


def page_count(path: str | os.PathLike[str]) -> int:
    """Return the number of pages of a picture: frames of a TIFF, a GIF, or pages of a PDF, as far as it names them."""
    if is_pdf(path):
        return len(pdf_pages(path))
    source = Path(path)
    _require_filled_file(source)
    with readable(source), Image.open(source) as picture:
        return int(getattr(picture, "n_frames", 1))


def synthetic_page(width: int, height: int) -> Image.Image:
    """Make a page without content, RGB and mid-grey, within Pillow's limit for pictures."""
    require_synthetic_size(width, height)
    return Image.new("RGB", (width, height), MID_GREY)


def require_synthetic_size(width: int, height: int, name: str = "page") -> None:
    """Refuse a page that is larger than Pillow's limit for pictures, by its `name`."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise StagemeterError(
            f"{name} of {width} x {height}: it has {width * height} pixels, more than the limit of {limit}. "
            "Give a smaller one, or a lower resolution"
        )


def _require_filled_file(source: Path) -> None:
    """Refuse an empty file, and everything that is not a regular file."""
    require_file(source, "picture of a page")
    if source.stat().st_size == 0:
        raise StagemeterError(f"{source}: is empty (0 bytes). Write or copy the picture again")


@contextmanager
def readable(source: Path) -> Iterator[None]:
    """Turn the errors that Pillow raises while it reads `source` into one clear error.

    Pillow warns of a picture beyond its limit and refuses one at twice the limit. Here both are refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        reason = str(error).removesuffix(".") or "not enough memory for its pixels"
        raise StagemeterError(f"{source}: is too large: {reason}. Use a smaller scan of it") from error
    except PermissionError as error:
        raise StagemeterError(f"{source}: may not be read ({error.strerror}). Change its permissions") from error
    except UnidentifiedImageError as error:
        raise StagemeterError(
            f"{source}: is not a picture that Pillow can read, or it has no pixels. Save the page as PNG or JPEG"
        ) from error
    except _DECODING_ERRORS as error:
        raise StagemeterError(
            f"{source}: is damaged or incomplete ({type(error).__name__}: {error}). Save or copy the picture again"
        ) from error


def _to_rgb(picture: Image.Image, source: Path) -> Image.Image:
    """Convert any pixel type to 8-bit RGB without clipping light greys."""
    if picture.mode == "F":
        raise StagemeterError(
            f"{source}: holds floating-point pixels, whose white is unknown. Save it as 8-bit PNG or JPEG"
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
            f"{source}: holds grey levels from {darkest} to {brightest}, beyond the 16-bit range of "
            f"0 to {LARGEST_16_BIT}. Save it as 8-bit PNG or JPEG"
        )
    transparent_level = picture.info.get("transparency")
    if transparent_level is not None:
        levels[levels == transparent_level] = LARGEST_16_BIT
    # 65535 is 255 x 257; adding half of 257 rounds to the nearest level.
    return Image.fromarray(((levels + 128) // 257).astype(numpy.uint8))
