"""The pages of a sweep: given sizes, a folder of pictures, a table of sizes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagemeter.config import LONGEST_SIDE
from stagemeter.core.files import read_text, shown
from stagemeter.errors import StagemeterError

#: How many files a message names.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class PageSize:
    """A page of a corpus.

    Attributes
    ----------
    width, height : int
        In pixels, upright.
    name : str or None
        What it is called.
    """

    width: int
    height: int
    name: str | None = None


def pages_of_sizes(sizes: Iterable[tuple[int, int]]) -> list[PageSize]:
    """Make pages of sizes alone."""
    return [PageSize(width, height) for width, height in sizes]


def pages_of_folder(folder: Path, jobs: int = -1) -> list[PageSize]:
    """Measure the pictures of a folder and of those below it, by name.

    Parameters
    ----------
    folder : Path
        The folder. Files that Pillow has no format for by their ending are passed over.
    jobs : int
        How many pictures are read at a time; -1 for as many as there are cores.

    Raises
    ------
    StagemeterError
        If there is no such folder, it holds no picture, or one cannot be read.
    """
    from joblib import Parallel, delayed
    from PIL import Image

    if not folder.is_dir():
        raise StagemeterError(f"--images {folder}: is no folder")
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not paths:
        raise StagemeterError(f"--images {folder}: holds no picture that Pillow reads")
    measured: Sequence[PageSize | str] = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_measure)(folder, path) for path in paths
    )
    broken = [found for found in measured if isinstance(found, str)]
    if broken:
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise StagemeterError(f"--images {folder}: {'; '.join(broken[:_NAMED])}{more}: mend or remove them")
    return [page for page in measured if isinstance(page, PageSize)]


def _measure(folder: Path, path: Path) -> PageSize | str:
    from stagemeter.inputs.page import page_size

    try:
        width, height = page_size(path)
    except StagemeterError as error:
        return str(error)
    return PageSize(width, height, str(path.relative_to(folder)))


def pages_of_table(path: Path) -> list[PageSize]:
    """Read a table of page sizes: CSV with the columns ``width``, ``height`` and, if there are names, ``page``.

    Raises
    ------
    StagemeterError
        If it cannot be read, lacks a column, or a size is none.
    """
    import pandas

    text = read_text(path, "table of pages")
    try:
        table = pandas.read_csv(io.StringIO(text), skipinitialspace=True)
    except (ValueError, OverflowError) as error:
        raise StagemeterError(f"--pages {path}: is not CSV: {str(error).splitlines()[0]}") from None
    missing = [name for name in ("width", "height") if name not in table.columns]
    if missing or table.empty:
        what = f"lacks the column {missing[0]!r}" if missing else "holds no page"
        raise StagemeterError(f"--pages {path}: {what}; write width,height[,page], and a line for each page")
    for name in ("width", "height"):
        sizes = pandas.to_numeric(table[name], errors="coerce")
        wrong = table.index[~sizes.between(1, LONGEST_SIDE) | (sizes % 1 != 0)]
        if len(wrong):
            raise StagemeterError(
                f"--pages {path}: line {wrong[0] + 2}: {name} is {shown(table[name].tolist()[wrong[0]])}; "
                f"give whole pixels from 1 to {LONGEST_SIDE}"
            )
        table[name] = sizes.astype("int64")
    names = table["page"].astype(str).tolist() if "page" in table.columns else [None] * len(table)
    rows = zip(table["width"].tolist(), table["height"].tolist(), names, strict=True)
    return [PageSize(width, height, name) for width, height, name in rows]
