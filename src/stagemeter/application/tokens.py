"""The ``tokens`` command from start to end: what pages become, and what fits into a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.fit import fit_page, sizes_of, sizes_of_pdf
from stagemeter.analysis.pages import limit_notes, limits_in_force, sampled_frames
from stagemeter.analysis.requests import no_video, one_page_alone, plan_request
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.core.pdf import is_pdf
from stagemeter.core.settings import LONGEST_SIDE
from stagemeter.core.units import page_size_in, pages_of
from stagemeter.core.video import Video, is_video, read_animation, read_video
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

_SETTING = "PAGE"
#: Fields of a workload that a page decides.
_SHOWN = (
    *("image_width", "image_height", "video_frames", "mode", "base_size", "image_size", "view_size", "global_views"),
    *("local_views", "tile_grid", "image_tokens", "prompt_tokens"),
)


def count_tokens(
    config: AnalysisConfig, pages: Sequence[str], *, fit: int | None = None, together: bool = False
) -> dict[str, Any]:
    """Return the views and tokens of each page as plain data, and the limits that decide them.

    Each of `pages` is a picture, pages of a PDF, a folder of both, a CSV or a size such as ``1654x2339``. Each page is
    a request of its own; the page of `config` does not count. With `fit`, a number of image tokens, each page has a
    ``fit``, see `stagemeter.analysis.fit.Fit`. There, the ``dpi`` of `config` is the resolution of every page.
    `together` makes all pages one request, whose tokens are in ``request``.
    """
    model = describe_model(config.model, config.trust_remote_code)
    if not model.family.reads_pages:
        raise StagemeterError(f"model {model.name}: it reads text alone, and no page. Give a model that reads pages")
    if fit is not None:
        require_closed_forms(model)
    read = [_read(page, config, model) for page in pages]
    found = [page for corpus in read for page in corpus.pages]
    if not found:
        raise StagemeterError(f"{_SETTING}: missing. Give a picture, a folder, a CSV of sizes or a size as 1654x2339")
    if fit is None:
        refuse_resolution(config.dpi, found)
    request: dict[str, Any] = {}
    if together:
        listed, request = _request(config, model, found, fit)
    else:
        # Pages of equal size are one row, and one search.
        rows = {page.key: _row(config, model, page, fit) for page in {page.key: page for page in found}.values()}
        listed = [rows[page.key] for page in found]
    first = _configured(config, model, found[0])
    limits = limits_in_force(first, model, first.image_w, first.image_h)
    of_pages = (note for corpus in read for note in corpus.notes)
    return {
        "model": model.name,
        "family": model.family.name,
        "text_tokens": config.text_tokens,
        "limits": {name: asdict(limit) for name, limit in limits.items()},
        "notes": list(dict.fromkeys((*of_pages, *limit_notes(first, model)))),
        **({} if fit is None else {"fit_into": fit}),
        **request,
        "pages": [{"page": _name(page), **row} for page, row in zip(found, listed, strict=True)],
    }


def _name(page: PageSize) -> str:
    return page.name or f"{page.width}x{page.height}"


def _read(given: str, config: AnalysisConfig, model: ModelDescription) -> Corpus:
    """Read an argument: a size, unless there is a file of that name, a folder, a CSV, a PDF, a video or a picture."""
    dpi = config.dpi
    path = outside_path(given, "page")
    size = page_size_in(given)
    if size is not None and not path.exists():
        width, height = size
        if not (1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE):
            raise StagemeterError(f"{_SETTING} {given}: sides have from 1 to {LONGEST_SIDE} pixels. Give another size")
        return pages_of_sizes([(width, height)])
    if path.is_dir():
        return pages_of_folder(path, dpi, setting=_SETTING)
    if path.suffix.lower() == ".csv":
        return pages_of_table(path, dpi, setting=_SETTING)
    try:
        video = _video(path, model)
        if video is None:
            return pages_of_file(path, dpi)
    except StagemeterError as error:
        # A file's name must not be taken for that of an option.
        error.args = (f"{_SETTING} {error}",)
        raise
    return _of_video(path, video, config, model)


def _video(path: Path, model: ModelDescription) -> Video | None:
    """Return the video of a file; None for pages. An animated picture is one to models that read videos."""
    if is_video(path):
        if not model.family.videos:
            raise no_video(str(path), model.name)
        return read_video(path)
    return read_animation(path) if model.family.videos and not is_pdf(path) else None


def _of_video(path: Path, video: Video, config: AnalysisConfig, model: ModelDescription) -> Corpus:
    """Return the page that a frame of a video is, and a note on the frames that are sampled."""
    rate = "" if video.rate is None else f" at {video.rate:g} a second"
    if config.video_frames is None:
        frames, limits = sampled_frames(config, model, video)
        why = limits or "transformers' processor samples none unless it is told to"
    else:
        frames, why = config.video_frames, "as --video-frames says"
        if frames > video.frames:
            raise StagemeterError(
                f"video_frames: {frames} of the {video.frames} frames of {path} cannot be sampled. Give at most "
                f"{video.frames}"
            )
    note = f"{path.name}: {frames:,} of {video.frames:,} frames{rate}; {why}"
    return Corpus([PageSize(video.width, video.height, path.name, video=video)], (note,))


def _configured(config: AnalysisConfig, model: ModelDescription, page: PageSize) -> AnalysisConfig:
    """Return the configuration of a request for a page or a video."""
    given = config.model_dump(exclude_unset=True)
    if page.video is not None and config.video_frames is None:
        given["video_frames"] = sampled_frames(config, model, page.video)[0]
    size = {"image_w": page.width, "image_h": page.height, "sample_image_path": None, "use_synthetic_inputs": True}
    return AnalysisConfig(**{**given, **size, "dpi": None})


def _request(
    config: AnalysisConfig, model: ModelDescription, pages: Sequence[PageSize], fit: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row for each page of a request, and the tokens of the request."""
    if fit is not None:
        raise StagemeterError("one_request: --fit answers for a page alone. Leave one of both out")
    first, *others = pages
    if others and any(page.video is not None for page in pages):
        raise StagemeterError("one_request: a request with a video has no other page. Leave it out")
    if others and model.family.tags is None:
        raise one_page_alone("one_request", len(pages), model)
    further = tuple(f"{page.width}x{page.height}" for page in others) or None
    of_first = _configured(config, model, first).model_dump(exclude_unset=True)
    workload = plan_request(AnalysisConfig(**{**of_first, "further_pages": further}), model)
    groups = pages_of(workload.to_dict())
    shown = [name for name in _SHOWN if name != "prompt_tokens"]
    each = [page for times, page in groups for _ in range(times)]
    rows = [{name: page[name] for name in shown if page.get(name) is not None} for page in each]
    tokens = {"image_tokens": workload.all_image_tokens, "tags": workload.tags, "prompt_tokens": workload.prompt_tokens}
    return rows, {"request": {"pages": workload.pages, **tokens}}


def _row(config: AnalysisConfig, model: ModelDescription, page: PageSize, fit: int | None) -> dict[str, Any]:
    of_page = _configured(config, model, page)
    workload = plan_request(of_page, model).to_dict()
    row = {name: workload[name] for name in _SHOWN if workload.get(name) is not None}
    if page.video is not None:
        row["file"] = {"frames": page.video.frames, "frames_per_second": page.video.rate}
    if fit is not None:
        sizes = (
            sizes_of(page.width, page.height, config.dpi) if page.pdf is None else sizes_of_pdf(page.pdf, config.dpi)
        )
        row["fit"] = asdict(fit_page(of_page, model, sizes, fit))
    return row
