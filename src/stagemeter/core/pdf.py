"""Pages of PDF documents: named, measured without rendering them, or rendered.

A page is named ``scan.pdf[2]``; ``scan.pdf`` has all pages, and ``scan.pdf[1-3,7-]`` some of them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path, require_file

if TYPE_CHECKING:
    from PIL import Image
    from pypdfium2 import PdfDocument

#: Dots per inch of a page without a given resolution: of A4, they make the default page.
DEFAULT_DPI = 200
#: Dots per inch of a scale of 1: a point is a 72nd of an inch.
_POINTS_PER_INCH = 72
#: Pages that a list of page numbers may name.
_MOST_PAGES = 100_000
_NUMBERED = re.compile(r"(?P<path>.*\.pdf)\[(?P<numbers>[^\[\]]*)\]", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"(?P<first>\d{1,9})?(?P<dash>-)?(?P<last>\d{1,9})?")
_BEGIN, _END = b"%PDF-", b"%%EOF"
#: Bytes at both ends of a file in which readers look for the marks (PDF 1.7, appendix H.3, notes 13 and 18).
_MARGIN = 1024
# Codes of FPDF_GetLastError (fpdfview.h).
_PASSWORD, _SECURITY = 4, 5
# PDFium is not safe for use by several threads.
_ONE_AT_A_TIME = RLock()


@dataclass(frozen=True, slots=True)
class PdfPage:
    """A page of a document.

    Attributes
    ----------
    label : str
        Its number in brackets, as in ``scan.pdf[2]``; empty if it is the only page of its document.
    width, height : float
        Points as the page is shown: rotated, and cut to its crop box.
    """

    label: str
    width: float
    height: float

    def pixels(self, dpi: int) -> tuple[int, int]:
        """Return the width and height in pixels at a resolution.

        Source: pypdfium2 5.15, ``PdfPage.render``: points times the scale, rounded up.
        """
        scale = dpi / _POINTS_PER_INCH
        return math.ceil(self.width * scale), math.ceil(self.height * scale)


def split_numbers(given: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Split ``scan.pdf[1-3]`` into path and numbers; None without numbers, and for a file that has such a name."""
    text = os.fspath(given)
    found = _NUMBERED.fullmatch(text)
    return (text, None) if found is None or Path(text).exists() else (found["path"], found["numbers"])


def is_pdf(given: str | os.PathLike[str]) -> bool:
    """Return whether a path names pages of a PDF, by its ending or the beginning of the file."""
    path = Path(split_numbers(given)[0])
    if path.suffix.lower() == ".pdf":
        return True
    try:
        # Opening a pipe would wait for a writer.
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(_BEGIN)) == _BEGIN
    except (OSError, ValueError):
        return False


def pdf_pages(given: str | os.PathLike[str]) -> list[PdfPage]:
    """Return the pages that a path names, or raise StagemeterError. A document is read again only if it has changed."""
    name, numbers = split_numbers(given)
    path = outside_path(name, "PDF")
    require_file(path, "PDF")
    state = path.stat()
    sizes = _sizes_at(path, (state.st_ino, state.st_mtime_ns, state.st_size))
    chosen = range(1, len(sizes) + 1) if numbers is None else _chosen(os.fspath(given), numbers, len(sizes))
    return [PdfPage("" if len(sizes) == 1 else f"[{number}]", *sizes[number - 1]) for number in chosen]


def render_page(given: str | os.PathLike[str], dpi: int) -> Image.Image:
    """Return the first of the pages that a path names as an RGB picture on white, of `PdfPage.pixels` pixels."""
    name, numbers = split_numbers(given)
    path = outside_path(name, "PDF")
    with _opened(path) as document:
        number = 1 if numbers is None else _chosen(os.fspath(given), numbers, len(document))[0]
        with _undamaged(path, number):
            bitmap = document[number - 1].render(scale=dpi / _POINTS_PER_INCH, rev_byteorder=True)
            # A copy, since the bitmap's memory goes with the document.
            picture: Image.Image = bitmap.to_pil().convert("RGB").copy()
    return picture


def _chosen(given: str, numbers: str, count: int) -> list[int]:
    """Return the page numbers of a list such as ``1-3,7-``, in the order of the list."""
    chosen: list[int] = []
    for part in numbers.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None or not (found["first"] or found["last"]):
            raise StagemeterError(f"{given}: is no list of page numbers. Write such as [2], [1-3] or [1,4-]")
        first = int(found["first"] or 1)
        last = int(found["last"] or (count if found["dash"] else first))
        if not 1 <= first <= max(last, first) <= count:
            raise StagemeterError(f"{given}: the document has the pages 1 to {count:,}. Give numbers among these")
        if first > last:
            raise StagemeterError(f"{given}: the range {part.strip()} runs backwards. Write the lower number first")
        chosen += range(first, last + 1)
    if len(chosen) > _MOST_PAGES:
        raise StagemeterError(f"{given}: names {len(chosen):,} pages, more than {_MOST_PAGES:,}. Name fewer")
    return chosen


@lru_cache(maxsize=8)
def _sizes_at(path: Path, state: tuple[int, ...]) -> list[tuple[float, float]]:
    """Return the widths and heights of all pages of a document in points."""
    sizes = []
    with _opened(path) as document:
        if len(document) > _MOST_PAGES:
            raise StagemeterError(
                f"{path}: says it has {len(document):,} pages. Split it into parts of {_MOST_PAGES:,}"
            )
        for number in range(1, len(document) + 1):
            with _undamaged(path, number):
                width, height = document.get_page_size(number - 1)
            if not (0 < width < math.inf and 0 < height < math.inf):
                raise StagemeterError(f"{path}: page {number} is {width:g} x {height:g} points. Save the PDF again")
            sizes.append((width, height))
    return sizes


@contextmanager
def _opened(path: Path) -> Iterator[PdfDocument]:
    """Open a document, or refuse a file that is none, is incomplete or needs a password."""
    from pypdfium2 import PdfDocument, PdfiumError

    require_file(path, "PDF")
    _require_whole(path)
    with _ONE_AT_A_TIME:
        try:
            document = PdfDocument(path)
        except PdfiumError as error:
            if error.err_code == _PASSWORD:
                raise StagemeterError(
                    f"{path}: is encrypted and needs a password. Save a copy without one: qpdf --decrypt"
                ) from error
            if error.err_code == _SECURITY:
                raise StagemeterError(
                    f"{path}: is encrypted in an unknown way. Save a copy without encryption"
                ) from error
            raise StagemeterError(
                f"{path}: is a damaged PDF, or one without pages ({error}). Save or copy it again"
            ) from error
        try:
            yield document
        finally:
            document.close()


def _require_whole(path: Path) -> None:
    """Refuse a file without the marks of both ends: PDFium opens some of those that are cut, with fewer pages."""
    size = path.stat().st_size
    if size == 0:
        raise StagemeterError(f"{path}: is empty (0 bytes). Write or copy the PDF again")
    with path.open("rb") as stream:
        begin = stream.read(_MARGIN)
        stream.seek(max(0, size - _MARGIN))
        end = stream.read()
    if _BEGIN not in begin:
        raise StagemeterError(f"{path}: is not a PDF by its content. Give a PDF, or rename the file")
    if _END not in end:
        raise StagemeterError(f"{path}: is an incomplete PDF, without the mark of its end. Save or copy it again")


@contextmanager
def _undamaged(path: Path, number: int) -> Iterator[None]:
    from pypdfium2 import PdfiumError

    try:
        yield
    except PdfiumError as error:
        raise StagemeterError(f"{path}: page {number} is damaged ({error}). Save the PDF again") from error
