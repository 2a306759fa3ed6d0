"""The pages of a sweep: given sizes, a folder of pictures, a table of sizes."""

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
from stagemeter.core.settings import LONGEST_SIDE

#: Files that a message names.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class PageSize:
    """A page of a corpus: its size in pixels, upright, and its name if it has one."""

    width: int
    height: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pages, and notes on files that were left out and pages that occur more than once."""

    pages: Sequence[PageSize]
    notes: tuple[str, ...] = ()


def pages_of_sizes(sizes: Iterable[tuple[int, int]]) -> Corpus:
    """Make pages of sizes alone."""
    return Corpus([PageSize(width, height) for width, height in sizes])


def pages_of_folder(folder: Path, jobs: int = -1, setting: str = "--images") -> Corpus:
    """Measure the pictures of a folder and of all folders below it, in the order of their names.

    Hidden files and folders, links to folders, and files whose ending Pillow does not know are left out. Of a picture
    with several pages, the first counts. A copy of a picture counts like the picture. `setting` names the
    folder in errors.
    """
    from joblib import Parallel, delayed

    if not folder.is_dir():
        raise StagemeterError(f"{setting} {folder}: no such folder. Give a folder of pictures")
    paths, left_out = _pictures(folder)
    if not paths:
        found = "".join(f"; {line}" for line in _left_out(left_out))
        raise StagemeterError(f"{setting} {folder}: holds no picture that Pillow reads{found}. Give another folder")
    measured: Sequence[_Measured | str] = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_measure)(folder, path) for path in paths
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
        notes += (f"{_number(copies, 'picture is a copy', 'pictures are copies')} of another one, and counts like it",)
    return Corpus([found.page for found in read], notes)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A picture: its first page, the number of pages after it, and a digest of the file."""

    page: PageSize
    further: int
    content: bytes


#: Kinds of files that a corpus leaves out, in words for one and for several.
_PDF = (
    "PDF, whose pages are to be rendered to pictures first",
    "PDFs, whose pages are to be rendered to pictures first",
)
_OTHER = ("file that is no picture by its ending", "files that are no pictures by their endings")
_HIDDEN = ("hidden file or folder", "hidden files or folders")
_LINK = ("link to a folder or to nothing", "links to folders or to nothing")
_FURTHER = ("further page of a picture of several pages", "further pages of pictures of several pages")


def _pictures(folder: Path) -> tuple[list[Path], Counter[tuple[str, str]]]:
    """Return the pictures of a folder by their endings, and the number of other files by kind."""
    from PIL import Image

    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
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
            elif path.suffix.lower() == ".pdf":
                left_out[_PDF] += 1
            elif path.suffix.lower() in endings:
                found.append(path)
            else:
                left_out[_OTHER] += 1
    return sorted(found), left_out


def pages_of_picture(path: Path) -> Corpus:
    """Measure one picture. Of a picture with several pages, the first counts."""
    from stagemeter.core.picture import page_count, page_size

    width, height = page_size(path)
    return Corpus([PageSize(width, height, path.name)], _left_out({_FURTHER: page_count(path) - 1}))


def _left_out(left_out: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    kinds = [_number(number, *kind) for kind, number in left_out.items() if number]
    return (f"left out of the pages: {'; '.join(kinds)}",) if kinds else ()


def _number(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _measure(folder: Path, path: Path) -> _Measured | str:
    from stagemeter.core.picture import page_count, page_size

    try:
        (width, height), further = page_size(path), page_count(path) - 1
    except StagemeterError as error:
        return str(error)
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()
    return _Measured(PageSize(width, height, str(path.relative_to(folder))), further, content)


def pages_of_table(path: Path, setting: str = "--pages") -> Corpus:
    """Read a table of page sizes: CSV with the columns ``width``, ``height`` and, if there are names, ``page``.

    `setting` names the file in errors.
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
    missing = [name for name in ("width", "height") if name not in table.columns]
    if missing or table.empty:
        what = f"lacks the column {missing[0]!r}" if missing else "holds no page"
        raise StagemeterError(f"{setting} {path}: {what}. Write width,height[,page], and a line for each page")
    for name in ("width", "height"):
        sizes = pandas.to_numeric(table[name], errors="coerce")
        wrong = table.index[~sizes.between(1, LONGEST_SIDE) | (sizes % 1 != 0)]
        if len(wrong):
            raise StagemeterError(
                f"{setting} {path}: line {wrong[0] + 2}: {name} is {shown(table[name].tolist()[wrong[0]])}. "
                f"Give whole pixels from 1 to {LONGEST_SIDE}"
            )
        table[name] = sizes.astype("int64")
    names = table["page"].astype(str).tolist() if "page" in table.columns else [None] * len(table)
    rows = zip(table["width"].tolist(), table["height"].tolist(), names, strict=True)
    pages = [PageSize(width, height, name) for width, height, name in rows]
    again = len(pages) - len({page.name for page in pages}) if "page" in table.columns else 0
    named = _number(again, "page has the name of another one", "pages have names of others")
    return Corpus(pages, (f"{named}: all of them count",) if again else ())
