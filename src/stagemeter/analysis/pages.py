"""From the page of a configuration to its views, and the limits that decide them. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagemeter.analysis.config import AnalysisConfig, Config
from stagemeter.core.errors import StagemeterError
from stagemeter.models.families.deepseek_ocr.tiling import MAX_TILES, MIN_TILES, RECIPE_TILES, ViewPlan, plan_views
from stagemeter.models.family import PageViews
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.pages.settings import OPTIONS, PUBLISHED, ProcessorFiles, ProcessorSettings
from stagemeter.models.pages.tile_limits import TileLimits, read_tile_limits

if TYPE_CHECKING:
    from PIL import Image


def load_picture(config: AnalysisConfig) -> Image.Image:
    """Load the picture of a configuration, or make the blank page of its size.

    Raises
    ------
    StagemeterError
        If the picture cannot be used.
    """
    from stagemeter.models.families.deepseek_ocr.page import load_page, synthetic_page

    if config.use_synthetic_inputs or config.sample_image_path is None:
        return synthetic_page(config.image_w, config.image_h)
    return load_page(config.sample_image_path)


def size_of_page(config: AnalysisConfig) -> tuple[int, int]:
    """Width and height in pixels of the page of a configuration.

    Raises
    ------
    StagemeterError
        If the picture cannot be used, or the page is larger than a picture may be.
    """
    from stagemeter.models.families.deepseek_ocr.page import page_size, require_synthetic_size

    if config.use_synthetic_inputs or config.sample_image_path is None:
        require_synthetic_size(config.image_w, config.image_h)
        return config.image_w, config.image_h
    return page_size(config.sample_image_path)


def plan_page(config: AnalysisConfig, files: ProcessorFiles | None = None) -> ViewPlan:
    """Decide which views DeepSeek-OCR makes of the page of a configuration.

    Parameters
    ----------
    config : AnalysisConfig
        The configuration.
    files : ProcessorFiles or None
        What its checkpoint says of how pages are prepared.

    Raises
    ------
    StagemeterError
        If the picture cannot be used, the page is larger than a picture may be, or limits contradict one another.
    """
    width, height = size_of_page(config)
    limits, _ = _tile_limits(config, files)
    return plan_views(width, height, config.base_size, config.image_size, config.crop_mode, limits.fewest, limits.most)


def settings_of(config: AnalysisConfig, files: ProcessorFiles | None = None) -> ProcessorSettings:
    """Settings of a checkpoint's processors, and the options that go over them."""
    asked = {option: value for option in OPTIONS if (value := getattr(config, option)) is not None}
    return ProcessorSettings(files, asked)


def own_views(
    config: AnalysisConfig, model: ModelDescription, width: int, height: int
) -> tuple[PageViews, ProcessorSettings]:
    """What the model's own processor makes of a page or a video, and the settings that decided it.

    Raises
    ------
    StagemeterError
        If a setting or an option cannot be, or the page becomes no token.
    """
    family, architecture = model.family, model.architecture
    settings = settings_of(config, model.processor)
    if family.rules is None:
        settings.refuse_unused(model.name, family.name)
        assert family.views is not None
        if config.video_frames is None:
            return family.views(architecture, width, height), settings
        assert family.video is not None
        return family.video(architecture, config.video_frames, width, height), settings
    rules = family.rules(architecture, settings)
    if config.video_frames is None:
        views = rules.page(width, height)
    else:
        assert rules.video is not None
        views = rules.video(config.video_frames, width, height)
    settings.refuse_unused(model.name, family.name)
    if views.image_tokens < 1 or views.global_views + views.local_views < 1:
        raise StagemeterError(
            f"a page of {width} x {height} pixels becomes no token of {model.name}: give a larger page, or other limits"
        )
    return views, settings


def limit_notes(config: AnalysisConfig, model: ModelDescription) -> tuple[str, ...]:
    """Say which limits decided the views of a page, and where each is from: an option, a file, or what is published."""
    family = model.family
    if not family.reads_pages:
        return ()
    if family.views is None:
        return tile_notes(config, model.processor)
    _, settings = own_views(config, model, *size_of_page(config))
    note = settings.note(video=config.video_frames is not None)
    return () if note is None else (note,)


def _tile_limits(config: AnalysisConfig, files: ProcessorFiles | None) -> tuple[TileLimits, ProcessorSettings]:
    """How few and how many tiles DeepSeek-OCR cuts a page into."""
    settings = settings_of(config, files)
    if not config.crop_mode and config.max_tiles is not None:
        raise StagemeterError(
            f"max_tiles: {config.max_tiles} means nothing in mode {config.mode}, which cuts no tiles. Leave it out, or "
            "take a mode that does, such as gundam"
        )
    limits = read_tile_limits(settings.image, most=MAX_TILES, fewest=MIN_TILES)
    settings.refuse_unused("DeepSeek-OCR", "deepseek-ocr")
    return limits, settings


def with_tile_limit(config: Config, files: ProcessorFiles) -> Config:
    """Return a configuration that names the limit of tiles of DeepSeek-OCR's own file, where there is one.

    For what has the configuration alone to prepare a page by.

    Raises
    ------
    StagemeterError
        If the file has another lower limit than the authors', which no configuration can say.
    """
    if files.image_source is None or not config.crop_mode:
        return config
    limits, _ = _tile_limits(config, files)
    if limits.fewest != MIN_TILES:
        raise StagemeterError(
            f"{files.image_source}: min_patches is {limits.fewest}; pages are run with {MIN_TILES} tiles or more. Set "
            f"it to {MIN_TILES}"
        )
    return config.model_copy(update={"max_tiles": limits.most})


def tile_notes(config: AnalysisConfig, files: ProcessorFiles | None = None) -> tuple[str, ...]:
    """Say how many tiles DeepSeek-OCR cuts a page into at most, and whose limit that is."""
    if not config.crop_mode:
        return ()
    limits, settings = _tile_limits(config, files)
    origin = settings.image.limits["max_tiles"].origin
    if origin != PUBLISHED:
        return (f"a page is cut into at most {limits.most} tiles, as {origin} says",)
    return (
        f"a page is cut into at most {limits.most} tiles, as the authors' transformers code does; their vLLM recipe "
        f"cuts at most {RECIPE_TILES}: --max-tiles {RECIPE_TILES} counts that",
    )
