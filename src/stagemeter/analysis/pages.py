"""From the page of a configuration to its views, and the limits that decide them. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.errors import StagemeterError
from stagemeter.core.units import page_size_in
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.processor_files import ProcessorFiles
from stagemeter.models.pages.settings import OPTIONS, Limit, ProcessorSettings
from stagemeter.models.resolution import Resolution

if TYPE_CHECKING:
    from PIL import Image

    from stagemeter.core.video import Video


def load_picture(config: AnalysisConfig) -> Image.Image:
    """Load the picture of a configuration, or make the blank page of its size."""
    from stagemeter.core.picture import load_page, synthetic_page

    if config.use_synthetic_inputs or config.sample_image_path is None:
        return synthetic_page(config.image_w, config.image_h)
    return load_page(config.sample_image_path, config.dpi)


def sizes_of_pages(config: AnalysisConfig) -> list[tuple[int, int]]:
    """Return the width and height in pixels of each page of a request, in order, or refuse impossible ones.

    ``scan.pdf[1-3]`` names three pages. Of other files, the first page counts.
    """
    from stagemeter.core.pdf import is_pdf
    from stagemeter.core.picture import named_sizes, require_synthetic_size

    given = _given_pages(config)
    if config.dpi is not None and not any(isinstance(page, str) and is_pdf(page) for page in given):
        raise StagemeterError(f"dpi: {config.dpi} means nothing without a PDF. Leave it out, or give a page of a PDF")
    sizes: list[tuple[int, int]] = []
    for page in given:
        if isinstance(page, str):
            sizes += named_sizes(page, config.dpi)
        else:
            require_synthetic_size(*page)
            sizes.append(page)
    number = config.images_per_request
    if len(sizes) > 1 and number is not None:
        raise StagemeterError(
            f"images_per_request: {number} pages like one, and {len(sizes)} pages are given. Leave one of both out"
        )
    sizes *= number or 1
    if len(sizes) > 1 and config.video_frames is not None:
        raise StagemeterError(
            f"video_frames: {config.video_frames} beside several pages; a request with a video has nothing else to "
            "encode. Leave one of both out"
        )
    return sizes


def _given_pages(config: AnalysisConfig) -> list[tuple[int, int] | str]:
    """Return what gives the pages of a request, in order: sizes and files."""
    further = [page_size_in(page) or page for page in config.further_pages or ()]
    return [config.sample_image_path or (config.image_w, config.image_h), *further]


def pages_left_out(config: AnalysisConfig) -> int:
    """Return the pages of the files of a configuration that are behind the first one, and not named."""
    from stagemeter.core.pdf import split_numbers
    from stagemeter.core.picture import page_count

    files = (page for page in _given_pages(config) if isinstance(page, str))
    return sum(page_count(file) - 1 for file in files if split_numbers(file)[1] is None)


def settings_of(config: AnalysisConfig, files: ProcessorFiles | None = None) -> ProcessorSettings:
    """Return the settings of a checkpoint's processors, and what a request asks of its page."""
    options = {option: value for option in OPTIONS if (value := getattr(config, option)) is not None}
    resolution = Resolution(
        config.mode,
        config.base_size,
        config.image_size,
        config.crop_mode,
        config.patch_size,
        config.downsample_ratio,
    )
    return ProcessorSettings(files, options, resolution)


def page_views(
    config: AnalysisConfig, model: ModelDescription, width: int, height: int, among: bool = False
) -> tuple[PageViews, tuple[str, ...]]:
    """Return the views of a page or a video, and notes that name the limits that decided them.

    `width` and `height`, in pixels, take the place of the configuration's page. `among` says that it is one of several
    pages of a request. Impossible settings and a page that becomes no token raise StagemeterError.
    """
    settings = settings_of(config, model.processor)
    rules, views_of = _rules(config, model, settings, among)
    views = views_of(width, height)
    settings.refuse_unused(model.name, model.family.name)
    if rules.notes is not None:
        return views, rules.notes(views)
    note = settings.note(video=config.video_frames is not None)
    return views, () if note is None else (note,)


def page_counter(config: AnalysisConfig, model: ModelDescription) -> Callable[[int, int], PageViews]:
    """Return a function from a width and a height in pixels to views, as `page_views` has them, for many sizes."""
    return _rules(config, model, settings_of(config, model.processor))[1]


def sampled_frames(config: AnalysisConfig, model: ModelDescription, video: Video) -> tuple[int, str | None]:
    """Return how many frames of a video the model's processor samples, and the settings that say so, if it does."""
    settings = settings_of(config, model.processor)
    assert model.family.rules is not None
    rules = model.family.rules(model.architecture, settings)
    assert rules.frames is not None
    number = rules.frames(video.frames, video.rate)
    return number, settings.note(video=True) if settings.video.limits else None


def _rules(
    config: AnalysisConfig, model: ModelDescription, settings: ProcessorSettings, among: bool = False
) -> tuple[PageRules, Callable[[int, int], PageViews]]:
    family, frames = model.family, config.video_frames
    assert family.rules is not None
    rules = family.rules(model.architecture, settings)
    of_page = rules.among if among and rules.among else rules.page

    def views_of(width: int, height: int) -> PageViews:
        if frames is None:
            views = of_page(width, height)
        else:
            assert rules.video is not None
            views = rules.video(frames, width, height)
        # The prompt of a model without closed forms may hold nothing of a page that it sees.
        if family.has_closed_forms and (views.image_tokens < 1 or views.global_views + views.local_views < 1):
            raise StagemeterError(
                f"page of {width} x {height} pixels: becomes no token of {model.name}. Give a larger page, or other "
                "limits"
            )
        return views

    return rules, views_of


def limits_in_force(config: AnalysisConfig, model: ModelDescription, width: int, height: int) -> Mapping[str, Limit]:
    """Return the values that decide the views of a page or a video, by name, with their origins."""
    assert model.family.rules is not None
    if model.family.modes and not config.crop_mode:
        return {}
    settings = settings_of(config, model.processor)
    rules = model.family.rules(model.architecture, settings)
    if config.video_frames is None or rules.video is None:
        return settings.image.limits
    # Limits of frames are read for a video.
    rules.video(config.video_frames, width, height)
    return settings.video.limits or settings.image.limits


def limit_notes(config: AnalysisConfig, model: ModelDescription) -> tuple[str, ...]:
    """Return notes that name the limits of a page's views, and the source of each.

    A source is an option, a file, or the published values of the family.
    """
    return page_views(config, model, *sizes_of_pages(config)[0])[1] if model.family.reads_pages else ()
