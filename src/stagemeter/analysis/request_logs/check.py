"""Requests of a log as arrays, checked line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.settings import LONGEST_SIDE, MOST_TOKENS

if TYPE_CHECKING:
    import pandas
    from numpy.typing import NDArray

#: Lines that are listed, and characters of the reason why a request failed.
_LISTED, _LONGEST = 100, 200
#: What separates pictures, and the sides of one.
_BETWEEN, _TIMES = re.compile(r"\s*[,;]\s*|\s+"), re.compile(r"\s*x\s*")


@dataclass
class Lines:
    """Lines of a log that are left out, each with the reason: how many, and the first of them."""

    count: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)

    def append(self, line: int, reason: str) -> None:
        """Count a line."""
        self.count += 1
        if len(self.first) < _LISTED:
            self.first.append({"line": line, "reason": reason})

    def to_dict(self) -> dict[str, Any]:
        """Return the number and the first lines as a document shows them."""
        return {"lines": self.count, "first": sorted(self.first, key=lambda one: one["line"])}


@dataclass
class BadLines:
    """Lines that are not costed.

    Attributes
    ----------
    path : Path
        The log.
    skip : bool
        Whether lines that cannot be used are left out. Without it one is an error.
    place : str
        What is numbered: ``line``, or ``request`` of a document.
    skipped, failed : Lines
        Lines that cannot be used, and requests that failed.
    """

    path: Path
    skip: bool | None
    place: str = "line"
    skipped: Lines = field(default_factory=Lines)
    failed: Lines = field(default_factory=Lines)

    def add(self, line: int, reason: str) -> None:
        """Count a line that cannot be used, or refuse it."""
        if not self.skip:
            remedy = "Repair it" if self.skip is None else "Repair it, or give --skip-bad"
            raise StagemeterError(f"{self.path}: {self.place} {line:,}: {reason}. {remedy}")
        self.skipped.append(line, reason)

    def left_out(self) -> str:
        """Return how many lines are left out as an error shows it, with a reason of each kind; nothing without any."""
        kinds = {"bad": self.skipped, "failed": self.failed}
        told = []
        for how, lines in kinds.items():
            if lines.count:
                first = lines.to_dict()["first"][0]
                told.append(f"{lines.count:,} {how} ({self.place} {first['line']:,}: {first['reason']})")
        return f": {' and '.join(told)}" if told else ""

    def fail(self, line: int, reason: str) -> None:
        """Count a request that failed."""
        self.failed.append(line, " ".join(reason.split())[:_LONGEST])


#: Width and height of each picture of a request, in order.
Sizes = tuple[tuple[int, int], ...]
#: In place of a picture's size, where a log only counts pictures.
UNSIZED = (0, 0)
_MOST_PICTURES = 65_536
#: Columns of the sizes of pictures.
SIZED = frozenset(("image_width", "image_height", "image_sizes"))
#: Names that tell each picture of a request from others; None where nothing does.
Names = tuple[str | None, ...]


@dataclass(frozen=True)
class Requests:
    """Requests of a log as arrays.

    `pictures` are places in `sizes`, which has those of each request once. `names` are of type `Names`, None for
    requests whose log does not tell pictures apart.
    """

    line: NDArray[Any]
    prompt: NDArray[Any]
    cached: NDArray[Any]
    output: NDArray[Any]
    pictures: NDArray[Any]
    sizes: tuple[Sizes, ...] = ((),)
    names: NDArray[Any] | None = None

    def where(self, rows: NDArray[Any]) -> Requests:
        """Return some of the requests."""
        numbers = (self.line, self.prompt, self.cached, self.output, self.pictures)
        line, prompt, cached, output, pictures = (values[rows] for values in numbers)
        names = None if self.names is None else self.names[rows]
        return Requests(line, prompt, cached, output, pictures, self.sizes, names)


def checked(table: pandas.DataFrame, bad: BadLines) -> Requests:
    """Return the good requests of a table, whose index is that of lines."""
    import numpy as np

    lines = table.index.to_numpy(np.int64)
    wrong: dict[int, str] = {}

    def mark(rows: Any, reason: Callable[[int], str]) -> None:
        for row in np.flatnonzero(rows).tolist():
            wrong.setdefault(row, reason(row))

    def column(name: str, least: int, most: int, needed: bool = False) -> NDArray[Any]:
        if name not in table.columns:
            return np.zeros(len(table), np.int64)
        values, good = _whole(table[name], least, most, needed)
        mark(~good, lambda row: _fault(name, table[name].iloc[row], least, most))
        return values

    prompt = column("prompt_tokens", 1, MOST_TOKENS, needed=True)
    cached = column("cached_tokens", 0, MOST_TOKENS)
    output = column("output_tokens", 1, MOST_TOKENS, needed=True)
    mark(cached >= np.maximum(prompt, 1), lambda row: _over(int(cached[row]), int(prompt[row])))
    if "total_tokens" in table.columns:
        total = column("total_tokens", 1, 2 * MOST_TOKENS)
        mark(
            (total > 0) & (total != prompt + output),
            lambda row: f"total_tokens {total[row]} is not prompt_tokens {prompt[row]} + output_tokens {output[row]}",
        )
    width, height = (column(name, 0, LONGEST_SIDE) for name in ("image_width", "image_height"))
    mark((width > 0) != (height > 0), lambda row: f"the picture is {width[row]} x {height[row]} pixels")
    known: dict[Sizes, int] = {(): 0}
    areas, which = np.unique(width * (LONGEST_SIDE + 1) + height, return_inverse=True)
    single = [(divmod(area, LONGEST_SIDE + 1),) if area else () for area in areas.tolist()]
    pictures = np.asarray([known.setdefault(one, len(known)) for one in single], np.int64)[which]
    if "image_sizes" in table.columns:
        several = _places(table["image_sizes"], known, mark)
        mark((pictures > 0) & (several > 0), lambda row: "image_sizes and image_width both tell a picture")
        pictures = np.where(several > 0, several, pictures)
    if "image_count" in table.columns:
        told = column("image_count", 0, _MOST_PICTURES)
        if SIZED.isdisjoint(table.columns):
            several, which = np.unique(told, return_inverse=True)
            unsized = [known.setdefault((UNSIZED,) * number, len(known)) for number in several.tolist()]
            pictures = np.asarray(unsized, np.int64)[which]
        else:
            sized = np.asarray(list(map(len, known)))[pictures]
            mark(
                table["image_count"].notna().to_numpy() & (told != sized),
                lambda row: f"image_count is {told[row]}, and there are sizes of {_counted(sized[row])}",
            )
    sizes, names = tuple(known), None
    if "image_ids" in table.columns:
        counts = np.asarray(list(map(len, sizes)))[pictures]
        names = _names(table["image_ids"], counts.tolist())
        found = np.fromiter((0 if one is None else len(one) for one in names), np.int64, len(names))
        mark(
            (found > 0) & (found != counts),
            lambda row: (
                f"image_ids is {shown(table['image_ids'].iloc[row])}, and the request has {_counted(counts[row])}"
            ),
        )
    for row in sorted(wrong):
        bad.add(int(lines[row]), wrong[row])
    requests = Requests(lines, prompt, cached, output, pictures, sizes, names)
    return requests.where(rows_without(wrong, len(lines))) if wrong else requests


def rows_without(wrong: Iterable[int], count: int) -> NDArray[Any]:
    """Return which of some rows are left without those that are wrong."""
    import numpy as np

    left = np.ones(count, bool)
    left[list(wrong)] = False
    return left


def _whole(values: pandas.Series, least: int, most: int, needed: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a column as whole numbers, 0 for bad ones, and which are good; missing ones are, if they may be."""
    import numpy as np
    import pandas

    # Neither truth values nor times are numbers of tokens.
    if values.dtype.kind in "bmM":
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    if values.dtype == np.int64:
        numbers = values.to_numpy()
        good = (numbers >= least) & (numbers <= most)
        return np.where(good, numbers, 0), good
    if values.dtype == object:
        # True is no number of tokens, and pandas fails on whole numbers that no float holds.
        wrong = values.map(lambda value: isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63))
        values = values.where(~wrong.astype(bool), "no number")
    floats = pandas.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    with np.errstate(invalid="ignore"):
        good = (floats >= least) & (floats <= most) & (floats % 1 == 0)
    numbers = np.where(good, floats, 0).astype(np.int64)
    return numbers, good if needed else good | values.isna().to_numpy()


def _fault(name: str, value: Any, least: int, most: int) -> str:
    import pandas

    if pandas.api.types.is_scalar(value) and pandas.isna(value):
        return f"{name} is missing"
    value = value.item() if hasattr(value, "item") else value
    # pandas makes floats of a column with missing numbers.
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return f"{name} is {shown(value)}, not a whole number from {least:,} to {most:,}"


def _over(cached: int, prompt: int) -> str:
    if cached > prompt:
        return f"cached_tokens {cached} are more than prompt_tokens {prompt}"
    return f"cached_tokens {cached} are the whole prompt, whose last token is always computed"


def _counted(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures or 'no'} pictures"


def _names(values: pandas.Series, counts: list[int]) -> NDArray[Any]:
    """Return what tells a request's pictures from others, None where nothing does: a name each, or a list of names."""
    import numpy as np

    found = np.empty(len(values), object)
    for row, value in enumerate(values.tolist()):
        if isinstance(value, str):
            if value.strip().startswith("["):
                with suppress(ValueError, RecursionError):
                    value = json.loads(value)
            elif counts[row] > 1:
                value = _BETWEEN.split(value.strip())
        several = value if isinstance(value, list) else [value]
        names = tuple(None if one is None or one != one or one in ("", []) else str(one) for one in several)
        found[row] = names if any(name is not None for name in names) else None
    return found


def _places(values: pandas.Series, known: dict[Sizes, int], mark: Callable[[Any, Callable[[int], str]], None]) -> Any:
    """Return the places of a column of pictures in `known`, to which new sizes are added."""
    import numpy as np

    read: dict[str, int | str] = {}
    found = np.zeros(len(values), np.int64)
    reasons: dict[int, str] = {}
    for row, value in enumerate(values.tolist()):
        key = value if isinstance(value, str) else repr(value)
        place = read.get(key)
        if place is None:
            sizes = _sizes(value)
            place = sizes if isinstance(sizes, str) else known.setdefault(sizes, len(known))
            read[key] = place
        if isinstance(place, str):
            reasons[row] = place
        else:
            found[row] = place
    rows = np.zeros(len(found), bool)
    rows[list(reasons)] = True
    mark(rows, lambda row: reasons[row])
    return found


def _sizes(value: Any) -> Sizes | str:
    """Return the sizes of a request's pictures, or what is wrong: [w, h], "WxH", an object, or a list of these."""
    wrong = f"image_sizes is {shown(value)}, not [[width, height]] or WxH in pixels, each from 1 to {LONGEST_SIDE:,}"
    if value is None or value != value:
        return ()
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return wrong
    if isinstance(value, str):
        text = _TIMES.sub("x", value.strip().lower())
        pictures: list[Any] = _BETWEEN.split(text) if text else []
    else:
        flat = isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value)
        pictures = [value] if flat or not isinstance(value, list) else value
    found = []
    for picture in pictures:
        if isinstance(picture, str):
            picture = [int(side) if side.isdecimal() and len(side) < 10 else None for side in picture.split("x")]
        elif isinstance(picture, dict):
            picture = [picture.get("width"), picture.get("height")]
        good = isinstance(picture, list) and len(picture) == 2
        if not good or not all(type(side) is int and 1 <= side <= LONGEST_SIDE for side in picture):
            return wrong
        found.append((picture[0], picture[1]))
    return tuple(found)
