"""The largest page, or the highest limit, whose image tokens fit into a number. Needs no torch.

Tokens do not always grow with a page: a grid of tiles follows its shape. So sizes are tried one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import limits_in_force, page_counter
from stagemeter.core.errors import StagemeterError
from stagemeter.core.pdf import DEFAULT_DPI, PdfPage
from stagemeter.core.picture import require_synthetic_size
from stagemeter.models.lookup import ModelDescription

#: Pixels of a page's shorter side. Below, whole pixels change the shape by more than 1 %.
_LEAST_SIDE = 50
#: How many times as wide and high as the page larger ones are tried.
LARGEST_TRIED = 4
#: Limits that a request can lower to have fewer tokens, and the limits below which they cannot go.
_LOWERED = {"max_pixels": "min_pixels", "max_tiles": "min_tiles"}


@dataclass(frozen=True, slots=True)
class Fit:
    """The largest page, and the limits, whose image tokens fit into a given number.

    Attributes
    ----------
    size : tuple of int or None
        Width and height of the page nearest to the given one that fits: the last of the sizes that fit without a gap,
        or, of a page that does not fit, the first smaller one that does. None: no size of this shape fits.
    tokens : int or None
        Image tokens of that size.
    next_tokens : int or None
        Image tokens of the page one step larger, which does not fit. None: no such page is counted, or it is more than
        `LARGEST_TRIED` times as wide and high as the page.
    dpi : int or None
        Resolution of that size, if that of the page is known.
    limits : dict
        Highest values of ``max_pixels`` or ``max_tiles`` under which the page as given fits. Empty if it fits anyway,
        or if no value makes it fit.
    """

    size: tuple[int, int] | None
    tokens: int | None
    next_tokens: int | None
    dpi: int | None
    limits: dict[str, int]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a page that keep its shape, by step: pixels of the longer side, or dots per inch.

    Attributes
    ----------
    at : callable
        Returns the width and height in pixels at a step.
    start : int
        Step of the page as it is.
    in_dpi : bool
        Whether steps are dots per inch.
    """

    at: Callable[[int], tuple[int, int]]
    start: int
    in_dpi: bool


def sizes_of(width: int, height: int, dpi: int | None = None) -> Sizes:
    """Return the sizes of a page of `width` x `height` pixels, which has a resolution if `dpi` is given."""
    start = dpi or max(width, height)

    def at(step: int) -> tuple[int, int]:
        # Rounded half up, without floats.
        columns, rows = (max(1, (2 * side * step + start) // (2 * start)) for side in (width, height))
        return columns, rows

    return Sizes(at, start, dpi is not None)


def sizes_of_pdf(page: PdfPage, dpi: int | None = None) -> Sizes:
    """Return the sizes that a page of a PDF is rendered to."""
    return Sizes(page.pixels, dpi or DEFAULT_DPI, in_dpi=True)


def fit_page(config: AnalysisConfig, model: ModelDescription, sizes: Sizes, most: int) -> Fit:
    """Return what fits into at most `most` image tokens, of a page of some `sizes`."""
    count = _counter(config, model)
    start = sizes.start
    width, height = sizes.at(start)

    def tokens_at(step: int) -> int | None:
        return count(*sizes.at(step))

    def fits(step: int) -> bool:
        tokens = tokens_at(step)
        return tokens is not None and tokens <= most

    least = -(-start * min(_LEAST_SIDE, width, height) // min(width, height))
    if fits(start):
        longest = start * LARGEST_TRIED
        beyond = _first(range(start + 1, longest + 1), lambda step: not fits(step))
        step: int | None = (beyond or longest + 1) - 1
    else:
        step = _first(range(start - 1, least - 1, -1), fits)
    limits = {} if fits(start) else _lowered(config, model, width, height, most)
    if step is None:
        return Fit(None, None, None, None, limits)
    above = None if step == start * LARGEST_TRIED else tokens_at(step + 1)
    return Fit(sizes.at(step), tokens_at(step), above, step if sizes.in_dpi else None, limits)


def _counter(config: AnalysisConfig, model: ModelDescription) -> Callable[[int, int], int | None]:
    """Return a function from a page's size to its image tokens; None if the model or Pillow takes no such page."""
    try:
        views_of = page_counter(config, model)
    except StagemeterError:
        return lambda width, height: None

    def count(width: int, height: int) -> int | None:
        try:
            require_synthetic_size(width, height)
            return views_of(width, height).image_tokens
        except StagemeterError:
            return None

    return count


def _lowered(config: AnalysisConfig, model: ModelDescription, width: int, height: int, most: int) -> dict[str, int]:
    """Return the highest limits, each given alone, under which a page that does not fit does."""
    limits = limits_in_force(config, model, width, height)
    # Options of a video must also leave something between the limits of pages.
    of_pages = limits_in_force(_with(config, video_frames=None), model, width, height)
    found = {}
    for name, lower in _LOWERED.items():
        if name not in limits:
            continue

        def fits(value: int, name: str = name) -> bool:
            tokens = _counter(_with(config, **{name: value}), model)(width, height)
            return tokens is not None and tokens <= most

        least = max(int(known[lower].value) if lower in known else 1 for known in (limits, of_pages))
        above = int(limits[name].value)
        # Fewer pixels never have more tokens; fewer tiles may.
        value = _bisected(least, above, fits) if name == "max_pixels" else _first(range(above - 1, least - 1, -1), fits)
        if value is not None:
            found[name] = value
    return found


def _with(config: AnalysisConfig, **settings: Any) -> AnalysisConfig:
    return AnalysisConfig(**{**config.model_dump(exclude_unset=True), **settings})


def _first(steps: Iterable[int], wanted: Callable[[int], bool]) -> int | None:
    return next((step for step in steps if wanted(step)), None)


def _bisected(least: int, above: int, fits: Callable[[int], bool]) -> int | None:
    """Return the last value that fits before one that does not; `above` does not. None if `least` does not, either."""
    if not fits(least):
        return None
    while above - least > 1:
        middle = (least + above) // 2
        least, above = (middle, above) if fits(middle) else (least, middle)
    return least
