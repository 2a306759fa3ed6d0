"""Grids of a sweep, from settings as people write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import settings_of
from stagemeter.analysis.requests import DEFAULT_TEXT_PROMPT, request_pages, require_parts
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.files import outside_path
from stagemeter.core.yaml_file import read_yaml
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.models.closed_form import coefficients
from stagemeter.models.family import Family
from stagemeter.models.lookup import ModelDescription, describe_model, require_closed_forms
from stagemeter.models.page_views import NO_PAGE
from stagemeter.models.pages.settings import OPTIONS
from stagemeter.sweeping.corpus import Corpus, pages_of_folder, pages_of_sizes, pages_of_table, refuse_resolution
from stagemeter.sweeping.evaluate import wide_columns, workload_of
from stagemeter.sweeping.grid import Grid, Page
from stagemeter.sweeping.ranges import numbers, sizes, words

#: Axes of a grid that are numbers, by the setting that gives them.
_NUMBERS = {"batch_size": "batch_sizes", "text_tokens": "text_tokens", "new_tokens": "new_tokens"}
#: Axes of how a prompt is computed, whose setting has no value where it is computed as a whole: 0 in a grid.
_PARTS = ("cached_tokens", "chunk_tokens")
#: Settings that give pages, of which a sweep takes one.
_KINDS_OF_PAGES = ("page_size", "images", "pages")


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep, each as text: values between commas, ranges such as ``256..4096:256``; None: the default.

    Attributes
    ----------
    model, mode, dtype, device : str or None
        Names. Without a device, rows have no bounds.
    page_size : str or None
        Sizes such as ``1240x1754``.
    images, pages : str or None
        A folder of pictures, or a CSV of page sizes, in place of sizes.
    images_per_request, batch_size, text_tokens, new_tokens, cached_tokens, chunk_tokens : str or None
        Numbers and ranges. Of the last two, 0 stands for none, and for prompts as a whole.
    seq_len, decode_context, dpi, min_pixels, max_pixels, max_tiles : str or None
        A single value, as in an analysis. Of several modes, a limit of tiles applies to those that cut any.
    """

    model: str | None = None
    mode: str | None = None
    page_size: str | None = None
    images: str | None = None
    pages: str | None = None
    images_per_request: str | None = None
    batch_size: str | None = None
    text_tokens: str | None = None
    new_tokens: str | None = None
    cached_tokens: str | None = None
    chunk_tokens: str | None = None
    dtype: str | None = None
    device: str | None = None
    seq_len: str | None = None
    decode_context: str | None = None
    dpi: str | None = None
    min_pixels: str | None = None
    max_pixels: str | None = None
    max_tiles: str | None = None


def read_settings(path: Path) -> SweepSettings:
    """Read settings from a YAML file, whose values are numbers, texts or lists of them."""
    values = read_yaml(path, "grid", "mode: [tiny, base]")
    known = [field.name for field in fields(SweepSettings)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise StagemeterError(f"{path}: {unknown[0]}: no such setting of a sweep. Known are {', '.join(known)}")
    return SweepSettings(**{name: _text(path, name, value) for name, value in values.items() if value is not None})


def _text(path: Path, name: str, value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts):
        raise StagemeterError(
            f"{path}: {name}: {value!r} is no number, text or list of them. Write such as 'tiny' or [1, 2]"
        )
    text = ",".join(map(str, parts))
    if not text.strip():
        raise StagemeterError(f"{path}: {name}: is empty. Give a value, or leave the line out")
    return text


def with_overrides(settings: SweepSettings, overrides: Mapping[str, str | None]) -> SweepSettings:
    """Put options over the settings of a file; one kind of pages replaces all others."""
    given = _given(overrides)
    if any(name in given for name in _KINDS_OF_PAGES):
        settings = replace(settings, **dict.fromkeys(_KINDS_OF_PAGES))
    return replace(settings, **given)


def build_grids(settings: SweepSettings) -> list[Grid]:
    """Build the grids of a sweep, one for each model."""
    corpus = _pages(settings)
    limits = _given({name: _single(settings, name) for name in OPTIONS})
    context = settings.decode_context
    is_number = context is None or not context.isalpha()
    fixed = _given(
        {
            "seq_len": _single(settings, "seq_len"),
            "decode_context": _single(settings, "decode_context") if is_number else context,
        }
    )
    modes, dtypes = _values(settings, "mode"), _values(settings, "dtype")
    asked = {axis: _values(settings, name, numbers) for name, axis in _NUMBERS.items()}
    asked |= {name: tuple(value or 0 for value in _values(settings, name, numbers)) for name in _PARTS}
    # Refuse values that no analysis takes; of numbers, the smallest and the largest decide.
    for name, axis in {**_NUMBERS, **{name: name for name in _PARTS}}.items():
        for value in (min(asked[axis]), max(asked[axis])):
            AnalysisConfig(**({name: value} if value or name not in _PARTS else {}))
    several = _values(settings, "images_per_request", numbers)
    for number in several:
        AnalysisConfig(images_per_request=number)
    for mode in modes:
        AnalysisConfig(mode=mode)
    for dtype in dtypes:
        AnalysisConfig(dtype=dtype)
    AnalysisConfig(**fixed, **limits)
    devices = [find_device(name) for name in words(settings.device, "--device")] if settings.device else []
    peaks = tuple({dtype: device_peak(device, dtype) for dtype in dtypes} for device in devices)
    grids = []
    models = [_described(model) for model in _values(settings, "model")]
    if settings.mode is not None and not any(described.family.modes for described in models):
        named = ", ".join(described.name for described in models)
        raise StagemeterError(f"mode: {named} has no modes. Leave it out, or sweep a model that has some")
    for described in models:
        model = described.name
        family, architecture = described.family, described.architecture
        pages, notes = _planned(modes, corpus, described, limits, several)
        axes: dict[str, Any] = {**asked, "dtypes": dtypes, "devices": peaks}
        if not family.reads_pages and settings.text_tokens is None:
            axes["text_tokens"] = (DEFAULT_TEXT_PROMPT,)
        closed_form = coefficients(family, architecture)
        grids.append(
            Grid(model, family.name, architecture, closed_form, pages, limits=limits, notes=notes, **axes, **fixed)
        )
    # A column has one type in the whole table.
    for grid, described in zip(grids, models, strict=True):
        _require_parts(grid, described)
    wide = frozenset(name for grid in grids for name in wide_columns(grid))
    return [replace(grid, wide=wide) for grid in grids]


def _require_parts(grid: Grid, model: ModelDescription) -> None:
    """Refuse cached tokens and chunks that some prompt of a grid cannot have; the shortest ones decide."""
    taken = {"batch_size": 1, "text_tokens": min(grid.text_tokens), "new_tokens": 1}
    for pages in dict.fromkeys(page.request for page in grid.pages):
        for name in _PARTS:
            for value in filter(None, getattr(grid, name)):
                require_parts(name, workload_of(grid, pages, {**taken, name: value}), model)


def _described(model: str) -> ModelDescription:
    described = describe_model(model)
    require_closed_forms(described)
    if not described.weights_known:
        raise StagemeterError(f"--model {model}: {described.notes[0]}. Sweep another model")
    return described


def _values(settings: SweepSettings, name: str, read: Callable[[str, str], list[Any]] = words) -> tuple[Any, ...]:
    """Return the values of a setting, by default the one of an analysis."""
    text = getattr(settings, name)
    return (getattr(AnalysisConfig(), name),) if text is None else tuple(read(text, _option(name)))


def _single(settings: SweepSettings, name: str) -> int | None:
    """Return the number of a setting that takes one, or None where it is not given."""
    text = getattr(settings, name)
    values = [None] if text is None else numbers(text, _option(name))
    if len(values) != 1:
        raise StagemeterError(f"{_option(name)}: {len(values)} values were given. Give one, and sweep another setting")
    return values[0]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def limits_of(family: Family[Any], mode: str, limits: Mapping[str, int], several: bool) -> dict[str, int]:
    """Return the limits that apply in a mode; of several modes, a limit of tiles applies to those that cut any."""
    cuts = mode not in family.modes or family.modes[mode].crop_mode
    return {name: value for name, value in limits.items() if cuts or not several or name != "max_tiles"}


def _pages(settings: SweepSettings) -> Corpus:
    exclusive(page_size=settings.page_size, images=settings.images, pages=settings.pages)
    dpi = _single(settings, "dpi")
    AnalysisConfig(dpi=dpi)
    if settings.images is not None:
        corpus = pages_of_folder(outside_path(settings.images, "--images"), dpi)
    elif settings.pages is not None:
        corpus = pages_of_table(outside_path(settings.pages, "--pages"), dpi)
    elif settings.page_size is not None:
        corpus = pages_of_sizes(sizes(settings.page_size, "--page-size"))
    else:
        corpus = pages_of_sizes([(AnalysisConfig().image_w, AnalysisConfig().image_h)])
    refuse_resolution(dpi, corpus.pages)
    return corpus


def _planned(
    modes: Sequence[str],
    corpus: Corpus,
    model: ModelDescription,
    limits: Mapping[str, int],
    several: Sequence[int | None],
) -> tuple[list[Page], tuple[str, ...]]:
    """Return requests of each number of every page in every mode of the family, and notes on the pages.

    Equal sizes are planned once.
    """
    family = model.family
    if not family.reads_pages:
        settings_of(AnalysisConfig(**limits)).refuse_unused(model.name, family.name)
        return [Page(0, 0, NO_PAGE)], ()
    found, notes = [], list(corpus.notes)
    for mode, number in product(modes if family.modes else modes[:1], several):
        asked: dict[str, Any] = {"mode": mode, **limits_of(family, mode, limits, len(modes) > 1)}
        planned: dict[tuple[int, int], Page] = {}
        for page in corpus.pages:
            size = page.width, page.height
            if size not in planned:
                config = AnalysisConfig(image_w=page.width, image_h=page.height, images_per_request=number, **asked)
                (first, *further), limit_notes = request_pages(config, model)
                more, tags = (further[0].times, further[0].tags) if further else (0, 0)
                planned[size] = Page(*size, first.views, more=more, tags=tags)
                notes += limit_notes
            found.append(replace(planned[size], name=page.name))
    return found, tuple(dict.fromkeys(notes))
