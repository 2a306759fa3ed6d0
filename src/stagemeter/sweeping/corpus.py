"""The pages of a corpus: given sizes, a picture or a PDF, a folder of them, a table."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import read_text, shown
from stagemeter.core.notes import KeyNote
from stagemeter.core.pdf import DEFAULT_DPI, PdfPage, is_pdf, pdf_pages, split_numbers
from stagemeter.core.settings import LONGEST_SIDE
from stagemeter.core.video import Video

#: Files that a message names.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class PageSize:
    """A page of a corpus: its size in pixels, upright, its name if it has one, and its PDF's page or its video."""

    width: int
    height: int
    name: str | None = None
    pdf: PdfPage | None = None
    video: Video | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Return all of a page but its name."""
        return self.width, self.height, self.video, self.pdf and (self.pdf.width, self.pdf.height)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pages, and notes on files that were left out and pages that occur more than once."""

    pages: Sequence[PageSize]
    notes: tuple[str, ...] = ()


def pages_of_sizes(sizes: Iterable[tuple[int, int]]) -> Corpus:
    """Make pages of sizes alone."""
    return Corpus([PageSize(width, height) for width, height in sizes])


def refuse_resolution(dpi: int | None, pages: Iterable[PageSize] = ()) -> None:
    """Refuse a resolution that no page needs, since none is of a PDF."""
    if dpi is not None and not any(page.pdf for page in pages):
        raise StagemeterError(f"dpi: {dpi} means nothing without a PDF. Leave it out, or give PDFs")


def pages_of_folder(folder: Path, dpi: int | None = None, jobs: int = -1, setting: str = "--images") -> Corpus:
    """Measure the pictures and PDFs of a folder and of all folders below it, in the order of their names.

    Hidden files and folders, links to folders, and files whose ending Pillow does not know are left out. Of a picture
    with several pages, the first counts; of a PDF, all do, at `dpi` dots per inch. A copy of a file counts like the
    file. `setting` names the folder in errors.
    """
    from joblib import Parallel, delayed

    if not folder.is_dir():
        raise StagemeterError(f"{setting} {folder}: no such folder. Give a folder of pictures or PDFs")
    paths, left_out = _pictures(folder)
    if not paths:
        found = "".join(f"; {line}" for line in _left_out(left_out))
        raise StagemeterError(
            f"{setting} {folder}: holds no PDF, and no picture that Pillow reads{found}. Give another folder"
        )
    measured: Sequence[_Measured | str] = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_measured)(str(path.relative_to(folder)), path, dpi) for path in paths
    )
    broken = [found for found in measured if isinstance(found, str)]
    if broken:
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise StagemeterError(f"{setting} {folder}: {'; '.join(broken[:_NAMED])}{more}. Repair or remove them")
    read = [found for found in measured if isinstance(found, _Measured)]
    left_out[_FURTHER] = sum(found.further for found in read)
    copies = len(read) - len({found.content for found in read})
    notes = _left_out(left_out)
    if copies:
        notes += (f"{_number(copies, 'file is a copy', 'files are copies')} of another one, and counts like it",)
    return Corpus([page for found in read for page in found.pages], notes)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A picture or a PDF: its pages, the number of those that are left out, and a digest of the file."""

    pages: Sequence[PageSize]
    further: int
    content: bytes


#: Kinds of files that a corpus leaves out, in words for one and for several.
_OTHER = ("file that is no picture by its ending", "files that are no pictures by their endings")
_HIDDEN = ("hidden file or folder", "hidden files or folders")
_LINK = ("link to a folder or to nothing", "links to folders or to nothing")
_FURTHER = ("further page of a picture of several pages", "further pages of pictures of several pages")


def _pictures(folder: Path) -> tuple[list[Path], Counter[tuple[str, str]]]:
    """Return the pictures and PDFs of a folder by their endings, and the number of other files by kind."""
    from PIL import Image

    Image.init()
    endings = {".pdf", *(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)}
    found: list[Path] = []
    left_out = Counter[tuple[str, str]]()
    for root, folders, files in os.walk(folder):
        here = Path(root)
        for name in list(folders):
            kind = _HIDDEN if name.startswith(".") else _LINK if (here / name).is_symlink() else None
            if kind is not None:
                left_out[kind] += 1
                folders.remove(name)
        for name in files:
            path = here / name
            if name.startswith("."):
                left_out[_HIDDEN] += 1
            elif not path.is_file():
                left_out[_LINK if path.is_symlink() else _OTHER] += 1
            elif path.suffix.lower() in endings:
                found.append(path)
            else:
                left_out[_OTHER] += 1
    return sorted(found), left_out


def pages_of_file(given: str | os.PathLike[str], dpi: int | None = None) -> Corpus:
    """Measure a picture, whose first page counts, or the pages of a PDF that a path such as ``scan.pdf[1-3]`` names."""
    found = _measure(Path(split_numbers(given)[0]).name, given, dpi)
    return Corpus(found.pages, _left_out({_FURTHER: found.further}))


def _left_out(left_out: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    kinds = [_number(number, *kind) for kind, number in left_out.items() if number]
    return (f"left out of the pages: {'; '.join(kinds)}",) if kinds else ()


def _number(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _measured(name: str, path: Path, dpi: int | None) -> _Measured | str:
    """Measure a file, or return why it cannot be."""
    try:
        return _measure(name, path, dpi)
    except StagemeterError as error:
        return str(error)


def _measure(name: str, given: str | os.PathLike[str], dpi: int | None) -> _Measured:
    from stagemeter.core.picture import page_count, page_size, require_synthetic_size

    further = 0
    if is_pdf(given):
        dpi = dpi or DEFAULT_DPI
        pages = [PageSize(*page.pixels(dpi), f"{name}{page.label}", page) for page in pdf_pages(given)]
        for page in pages:
            require_synthetic_size(page.width, page.height, f"{given}: page {page.name}")
    else:
        pages, further = [PageSize(*page_size(given), name)], page_count(given) - 1
    with Path(split_numbers(given)[0]).expanduser().open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()
    return _Measured(pages, further, content)


def pages_of_table(path: Path, dpi: int | None = None, setting: str = "--pages") -> Corpus:
    """Read a table of pages: CSV with the columns ``width``, ``height`` and, if there are names, ``page``.

    Where both sizes are missing, ``page`` names a picture or pages of a PDF, from the folder of the table. `setting`
    names the file in errors.
    """
    import pandas

    text = read_text(path, "table of pages")
    try:
        table = pandas.read_csv(io.StringIO(text), skipinitialspace=True)
    except (ValueError, OverflowError) as error:
        raise StagemeterError(f"{setting} {path}: is not CSV ({str(error).splitlines()[0]}). Save it as CSV") from None
    if not isinstance(table.index, pandas.RangeIndex):
        raise StagemeterError(f"{setting} {path}: a line has more columns than the header. Write width,height[,page]")
    header = [name.strip() for name in next(csv.reader(io.StringIO(text)), [])]
    twice = [name for name in ("width", "height", "page") if header.count(name) > 1]
    if twice:
        raise StagemeterError(f"{setting} {path}: has the column {twice[0]!r} more than once. Keep one of them")
    has_names = "page" in table.columns
    missing = [name for name in ("width", "height") if name not in table.columns]
    if len(missing) == 1 or (missing and not has_names) or table.empty:
        what = f"lacks the column {missing[0]!r}" if missing else "holds no page"
        raise StagemeterError(f"{setting} {path}: {what}. Write width,height[,page], and a line for each page")
    table = table.reindex(columns=[*table.columns, *missing])
    files = table[["width", "height"]].isna().all(axis=1) & (table["page"].notna() if has_names else False)
    sized = table[~files]
    for name in ("width", "height"):
        sizes = pandas.to_numeric(sized[name], errors="coerce")
        wrong = sized.index[~sizes.between(1, LONGEST_SIDE) | (sizes % 1 != 0)]
        if len(wrong):
            raise StagemeterError(
                f"{setting} {path}: line {wrong[0] + 2}: {name} is {shown(table[name].tolist()[wrong[0]])}. "
                f"Give whole pixels from 1 to {LONGEST_SIDE}"
            )
        table[name] = sizes.reindex(table.index, fill_value=0).astype("int64")
    names = table["page"].astype(str).tolist() if has_names else [None] * len(table)
    pages: list[PageSize] = []
    further = 0
    for line, (width, height, name, is_file) in enumerate(
        zip(table["width"].tolist(), table["height"].tolist(), names, files.tolist(), strict=True), start=2
    ):
        if not is_file:
            pages.append(PageSize(width, height, name))
            continue
        assert name is not None
        try:
            found = _measure(split_numbers(name)[0], path.parent / name, dpi)
        except StagemeterError as error:
            error.args = (f"{setting} {path}: line {line}: {error}",)
            raise
        pages += found.pages
        further += found.further
    again = len(pages) - len({page.name for page in pages}) if has_names else 0
    notes = _left_out({_FURTHER: further})
    if again:
        notes += (
            f"{_number(again, 'page has the name of another one', 'pages have names of others')}: all of them count",
        )
    others = [shown(name) for name in header if name not in ("width", "height", "page")]
    if others:
        notes += (KeyNote(f"columns that are not read: {', '.join(others)}. Each line is one page"),)
    return Corpus(pages, notes)
