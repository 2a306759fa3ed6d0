"""Settings of a checkpoint's processors: read, checked, and kept with their origin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.notes import KeyNote
from stagemeter.models.pages.processor_files import ProcessorFiles
from stagemeter.models.resolution import Resolution

#: Limits of pages that a request may set, and the options that give them.
OPTIONS = {"min_pixels": "--min-pixels", "max_pixels": "--max-pixels", "max_tiles": "--max-tiles"}
#: Most tiles of a page that a setting may ask for; published processors have up to 36.
MOST_TILES = 1024
#: Most pixels that a setting may ask for, more than any page has, and the longest side in pixels.
MOST_PIXELS, LONGEST_SIDE = 10**10, 100_000
#: Origin of a value that neither a file nor an option gives.
PUBLISHED, OF_CLASS = "the family's published values", "transformers' defaults"
#: Settings that hold several numbers, none of which has a default once one is given.
_SIZES = ("size", "max_image_size")
#: Heights and widths in pixels.
Canvases = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A value that decides what a page becomes, and its origin."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A value, its origin, its name in messages, and what they say it is; None: the value."""

    value: Any
    origin: str
    name: str
    said: str | None = None


@dataclass(slots=True)
class _Asked:
    """Options of a request, and those of them that a rule has read."""

    options: Mapping[str, int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


class PageSettings:
    """Settings of one processor: options win over its file, which wins over the family's published values.

    Published values hold only without a file; a key missing from a file has the default of transformers' class.
    `limits` keeps every value that decides what a page becomes. Each method refuses an invalid value by a
    `StagemeterError`. `source` names the file; None without one.
    """

    def __init__(self, values: Mapping[str, Any], source: str | None, asked: _Asked | None = None) -> None:
        self.values = values
        self.source = source
        self.limits: dict[str, Limit] = {}
        self._asked = asked or _Asked()

    def number(
        self,
        *keys: str,
        published: int,
        default: int | None = None,
        least: int = 1,
        most: int = LONGEST_SIDE,
        option: str | None = None,
        name: str | None = None,
    ) -> int:
        """Return a whole number that decides what a page becomes.

        Parameters
        ----------
        *keys : str
            Names in files, the one that wins first; ``size.longest_edge`` is a key within another one.
        published, default : int
            Value without a file, and in a file that lacks it; by default, the published one for both.
        option : str or None
            Option that wins over the file.
        name : str or None
            Name in `limits`; None: the first key.
        """
        found = self._find(keys, published, default, option)
        value = found.value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self._refuse(found, f"it must be a whole number from {least:,} to {most:,}")
        self.limits[name or keys[0]] = Limit(value, found.origin)
        return value

    def ratio(self, key: str, published: float) -> float:
        """Return a number above zero that decides what a page becomes."""
        found = self._find((key,), published)
        value = found.value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            self._refuse(found, "it must be a number above 0")
        self.limits[key] = Limit(value, found.origin)
        return float(value)

    def flag(self, key: str, published: bool, default: bool | None = None) -> bool:
        """Return a switch, which is recorded as a limit if it differs from the published one."""
        found = self._find((key,), published, default)
        if not isinstance(found.value, bool):
            self._refuse(found, "it must be true or false")
        if found.value != published:
            self.limits[key] = Limit(found.value, found.origin)
        return bool(found.value)

    def canvases(self, key: str, published: Canvases, default: Canvases, side: int) -> Canvases:
        """Return heights and widths in pixels that are multiples of a view's side."""
        found = self._find((key,), published, default)
        given = canvases_of(found.value, side)
        if given is None:
            self._refuse(found, f"it must be a list of heights and widths that are multiples of the view's {side}")
        self.limits[key] = Limit(f"{len(given)} canvases", found.origin)
        return given

    def require(self, *keys: str, needed: Any, default: Any = None, why: str = "the encoder is made for") -> None:
        """Refuse a setting that contradicts the model.

        `needed` is its only valid value, which may be written for both sides. `default` is its value in a file that
        lacks it; None means the needed one. `why` is the reason, in words that precede the value.
        """
        found = self._find(keys, needed, default)
        if _one_number(found.value) != _one_number(needed) or isinstance(found.value, bool) != isinstance(needed, bool):
            self._refuse(found, f"{why} {needed!r}")

    def side(self, *keys: str, published: int, default: int | None = None, needed: int | None = None) -> int:
        """Return the side in pixels of a square, written as one edge or as height and width.

        `needed` is the only valid side; None allows any. For the other arguments, see `number`.
        """
        found = self._find(keys, published, default)
        value = _one_number(found.value)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LONGEST_SIDE:
            self._refuse(found, "it must be the side of a square in pixels")
        if needed is not None and value != needed:
            self._refuse(found, f"the encoder takes views of {needed} x {needed} pixels")
        if needed is None:
            self.limits[keys[0]] = Limit(value, found.origin)
        return int(value)

    def has(self, key: str) -> bool:
        """Return whether the file holds a key, other than null."""
        return self._in_file(key) is not None

    def refuse(self, key: str, why: str) -> NoReturn:
        """Refuse the file's value of a key."""
        self._refuse(_Found(self._in_file(key), str(self.source), f"{self.source}: {key}"), why)

    def require_order(self, lower: str, upper: str) -> None:
        """Refuse a lower limit above the upper one."""
        least, most = self.limits[lower], self.limits[upper]
        if least.value > most.value:
            raise StagemeterError(
                f"{lower}: {least.value:,} of {least.origin} is more than {upper}, {most.value:,} of {most.origin}. "
                "Give limits that leave something between them"
            )

    def _find(self, keys: tuple[str, ...], published: Any, default: Any = None, option: str | None = None) -> _Found:
        if option is not None:
            self._asked.taken.add(option)
            if option in self._asked.options:
                return _Found(self._asked.options[option], OPTIONS[option], f"{option}: it")
        for key in keys:
            value = self._in_file(key)
            if value is not None:
                return _Found(value, str(self.source), f"{self.source}: {key}")
        for parent, _, edge in (key.rpartition(".") for key in keys):
            if parent in _SIZES and self.has(parent):
                # A size that is present must be complete.
                self.refuse(parent, f"it must hold {edge}")
        if self.source is None:
            return _Found(published, PUBLISHED, keys[0])
        value = published if default is None else default
        said = f"missing, which transformers takes as {value!r}"
        return _Found(value, OF_CLASS, f"{self.source}: {keys[0]}", said)

    def _in_file(self, key: str) -> Any:
        value: Any = self.values
        for name in key.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(name)
        return value

    def _refuse(self, found: _Found, why: str) -> NoReturn:
        where, colon, key = found.name.partition(": ")
        value = found.said or shown(found.value)
        raise StagemeterError(f"{where}: {key if colon else 'it'} is {value}. {why[0].upper()}{why[1:]}")


class ProcessorSettings:
    """Settings of a checkpoint's processors and the options of a request, which win over them.

    Options are named as in `OPTIONS`. Only families with modes have a `resolution`.
    """

    def __init__(
        self,
        files: ProcessorFiles | None = None,
        options: Mapping[str, int] | None = None,
        resolution: Resolution | None = None,
    ) -> None:
        files = files or ProcessorFiles()
        self.options = options or {}
        self.resolution = resolution
        self._asked = _Asked(self.options)
        self.image = PageSettings(files.image, files.image_source, self._asked)
        self.video = PageSettings(files.video, files.video_source, self._asked)
        self.whole = PageSettings(files.whole, files.whole_source, self._asked)

    def refuse_unused(self, model: str, family: str) -> None:
        """Refuse options that no rule of a family has read."""
        for option, value in self._asked.options.items():
            if option not in self._asked.taken:
                known = ", ".join(sorted(self._asked.taken))
                instead = f"it has only {known}" if known else "it has no such limit"
                if family == "generic":
                    instead = "a processor of transformers prepares its pages, by its preprocessor_config.json"
                raise StagemeterError(
                    f"{option}: {value:,} means nothing to {model}, of the family {family}: {instead}. Leave it out"
                )

    def note(self, video: bool = False) -> str | None:
        """Return the limits that decided what a page or a video becomes, with their origins; None without any."""
        limits = (self.video if video and self.video.limits else self.image).limits
        by_origin: dict[str, list[str]] = {}
        for name, limit in limits.items():
            value = f"{limit.value:,}" if type(limit.value) is int else str(limit.value)
            by_origin.setdefault(limit.origin, []).append(f"{name} {value}")
        if not by_origin:
            return None
        listed = "; ".join(f"{', '.join(values)}, from {origin}" for origin, values in by_origin.items())
        note = f"limits of {'videos' if video else 'pages'}: {listed}"
        return KeyNote(note) if any(origin.startswith("--") for origin in by_origin) else note


def canvases_of(given: Any, side: int) -> Canvases | None:
    """Return heights and widths in pixels that are multiples of a view's side; None if a value is something else."""
    listed = isinstance(given, (list, tuple)) and 0 < len(given) <= MOST_TILES
    if not listed or not all(_is_canvas(canvas, side) for canvas in given):
        return None
    return tuple((height, width) for height, width in given)


def _is_canvas(canvas: Any, side: int) -> bool:
    return (
        isinstance(canvas, (list, tuple))
        and len(canvas) == 2
        and all(type(edge) is int and 0 < edge <= LONGEST_SIDE and edge % side == 0 for edge in canvas)
    )


def _one_number(value: Any) -> Any:
    """Return a size of equal sides, or of one edge, as one number; return anything else unchanged."""
    if isinstance(value, Mapping):
        # Files of older versions hold edges that are null.
        sides: Any = [side for side in value.values() if side is not None]
    else:
        sides = value
    if isinstance(sides, (list, tuple)) and sides and all(type(side) is int for side in sides):
        return sides[0] if len(set(sides)) == 1 else value
    return value
