"""The ``tokens`` command from start to end: what pages become, and what fits into a number of tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.fit import fit_page, sizes_of, sizes_of_pdf
from stagemeter.analysis.pages import limit_notes, limits_in_force
from stagemeter.analysis.requests import plan_request
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.core.settings import LONGEST_SIDE
from stagemeter.models.lookup import ModelDescription, describe_model, require_closed_forms
from stagemeter.sweeping.corpus import (
    Corpus,
    PageSize,
    pages_of_file,
    pages_of_folder,
    pages_of_sizes,
    pages_of_table,
    refuse_resolution,
)

_SIZE = re.compile(r"(\d{1,9})[xX×](\d{1,9})")
_SETTING = "PAGE"
#: Fields of a workload that a page decides.
_SHOWN = (
    *("image_width", "image_height", "video_frames", "mode", "base_size", "image_size", "view_size", "global_views"),
    *("local_views", "tile_grid", "image_tokens", "prompt_tokens"),
)


def count_tokens(config: AnalysisConfig, pages: Sequence[str], *, fit: int | None = None) -> dict[str, Any]:
    """Return the views and tokens of each page as plain data, and the limits that decide them.

    Each of `pages` is a picture, pages of a PDF, a folder of both, a CSV or a size such as ``1654x2339``. Each page is
    a request of its own; the page of `config` does not count. With `fit`, a number of image tokens, each page has a
    ``fit``, see `stagemeter.analysis.fit.Fit`. There, the ``dpi`` of `config` is the resolution of every page.
    """
    model = describe_model(config.model, config.trust_remote_code)
    if not model.family.reads_pages:
        raise StagemeterError(f"model {model.name}: it reads text alone, and no page. Give a model that reads pages")
    if fit is not None:
        require_closed_forms(model)
    read = [_read(page, config.dpi) for page in pages]
    found = [page for corpus in read for page in corpus.pages]
    if not found:
        raise StagemeterError("page: missing. Give a picture, a folder, a CSV of sizes or a size such as 1654x2339")
    if fit is None:
        refuse_resolution(config.dpi, found)
    # Pages of equal size are one row, and one search.
    rows = {page.key: _row(config, model, page, fit) for page in {page.key: page for page in found}.values()}
    first = _of_size(config, found[0].width, found[0].height)
    limits = limits_in_force(first, model, first.image_w, first.image_h)
    of_pages = (note for corpus in read for note in corpus.notes)
    return {
        "model": model.name,
        "family": model.family.name,
        "text_tokens": config.text_tokens,
        "limits": {name: asdict(limit) for name, limit in limits.items()},
        "notes": list(dict.fromkeys((*of_pages, *limit_notes(first, model)))),
        **({} if fit is None else {"fit_into": fit}),
        "pages": [{"page": _name(page), **rows[page.key]} for page in found],
    }


def _name(page: PageSize) -> str:
    return page.name or f"{page.width}x{page.height}"


def _read(given: str, dpi: int | None) -> Corpus:
    """Read an argument: a size, unless there is a file of that name, a folder, a CSV, a PDF or a picture."""
    path = outside_path(given, "page")
    size = _SIZE.fullmatch(given.strip())
    if size is not None and not path.exists():
        width, height = int(size[1]), int(size[2])
        if not (1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE):
            raise StagemeterError(f"{_SETTING} {given}: sides have from 1 to {LONGEST_SIDE} pixels. Give another size")
        return pages_of_sizes([(width, height)])
    if path.is_dir():
        return pages_of_folder(path, dpi, setting=_SETTING)
    if path.suffix.lower() == ".csv":
        return pages_of_table(path, dpi, setting=_SETTING)
    try:
        return pages_of_file(path, dpi)
    except StagemeterError as error:
        # A file's name must not be taken for that of an option.
        error.args = (f"{_SETTING} {error}",)
        raise


def _of_size(config: AnalysisConfig, width: int, height: int) -> AnalysisConfig:
    """Return a configuration for a page of a size."""
    page = {"image_w": width, "image_h": height, "sample_image_path": None, "use_synthetic_inputs": True, "dpi": None}
    return AnalysisConfig(**{**config.model_dump(exclude_unset=True), **page})


def _row(config: AnalysisConfig, model: ModelDescription, page: PageSize, fit: int | None) -> dict[str, Any]:
    of_page = _of_size(config, page.width, page.height)
    workload = plan_request(of_page, model).to_dict()
    row = {name: workload[name] for name in _SHOWN if workload.get(name) is not None}
    if fit is not None:
        sizes = (
            sizes_of(page.width, page.height, config.dpi) if page.pdf is None else sizes_of_pdf(page.pdf, config.dpi)
        )
        row["fit"] = asdict(fit_page(of_page, model, sizes, fit))
    return row
