"""From a configuration to the workload it asks for. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stagemeter.config import AnalysisConfig
from stagemeter.errors import StagemeterError
from stagemeter.inputs.tiling import MAX_TILES, MIN_TILES, RECIPE_TILES, ViewPlan, plan_views
from stagemeter.mfu import select_decode_context_len
from stagemeter.models.closed_form import decode_span
from stagemeter.models.deepseek_ocr_config import DeepseekOCRArchitecture
from stagemeter.models.description import ModelDescription
from stagemeter.models.family import Family, LanguageModel, PageViews, own_workload, text_workload
from stagemeter.models.page_settings import OPTIONS, PUBLISHED, ProcessorFiles, ProcessorSettings
from stagemeter.models.tile_limits import TileLimits, read_tile_limits
from stagemeter.workload import OWN, TEXT, Workload

if TYPE_CHECKING:
    from PIL import Image

#: Tokens of a prompt to a model that reads text alone, where no length is given.
DEFAULT_TEXT_PROMPT = 1024


def load_picture(config: AnalysisConfig) -> Image.Image:
    """Load the picture of a configuration, or make the blank page of its size.

    Raises
    ------
    StagemeterError
        If the picture cannot be used.
    """
    from stagemeter.inputs.page import load_page, synthetic_page

    if config.use_synthetic_inputs or config.sample_image_path is None:
        return synthetic_page(config.image_w, config.image_h)
    return load_page(config.sample_image_path)


def refuse_adapter(config: AnalysisConfig, what: str) -> None:
    """Refuse an adapter where what is asked for leaves it aside.

    Parameters
    ----------
    config : AnalysisConfig
        The configuration.
    what : str
        What is asked for.

    Raises
    ------
    StagemeterError
        If the configuration has one.
    """
    if config.adapter is not None:
        raise StagemeterError(f"adapter {config.adapter}: {what} knows no adapters; analyze counts them. Leave it out")


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
    width, height = _page_size(config)
    limits, _ = _tile_limits(config, files)
    return plan_views(width, height, config.base_size, config.image_size, config.crop_mode, limits.fewest, limits.most)


def plan_request(config: AnalysisConfig, model: ModelDescription) -> Workload:
    """Work out what a configuration asks of a model: pages and text, or text alone.

    Raises
    ------
    StagemeterError
        If the picture cannot be used, or the configuration contradicts the model.
    """
    family, architecture = model.family, model.architecture
    if not family.reads_pages:
        _settings(config).refuse_unused(model.name, family.name)
        if config.video_frames is not None:
            raise _no_video(config, model.name)
        return plan_text(config, family.decoder(architecture))
    if family.views is None:
        return plan_workload(config, architecture, model.processor)
    if config.video_frames is not None and family.video is None:
        raise _no_video(config, model.name)
    width, height = _page_size(config)
    views, _ = _own_views(config, model, width, height)
    return plan_own(config, (width, height), views, family, architecture)


def _settings(config: AnalysisConfig, files: ProcessorFiles | None = None) -> ProcessorSettings:
    """Settings of a checkpoint's processors, and the options that go over them."""
    asked = {option: value for option in OPTIONS if (value := getattr(config, option)) is not None}
    return ProcessorSettings(files, asked)


def _own_views(
    config: AnalysisConfig, model: ModelDescription, width: int, height: int
) -> tuple[PageViews, ProcessorSettings]:
    """What the model's own processor makes of a page or a video, and the settings that decided it."""
    family, architecture = model.family, model.architecture
    settings = _settings(config, model.processor)
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
    _, settings = _own_views(config, model, *_page_size(config))
    note = settings.note(video=config.video_frames is not None)
    return () if note is None else (note,)


def _tile_limits(config: AnalysisConfig, files: ProcessorFiles | None) -> tuple[TileLimits, ProcessorSettings]:
    """How few and how many tiles DeepSeek-OCR cuts a page into."""
    settings = _settings(config, files)
    if not config.crop_mode and config.max_tiles is not None:
        raise StagemeterError(
            f"max_tiles: {config.max_tiles} means nothing in mode {config.mode}, which cuts no tiles. Leave it out, or "
            "take a mode that does, such as gundam"
        )
    limits = read_tile_limits(settings.image, most=MAX_TILES, fewest=MIN_TILES)
    settings.refuse_unused("DeepSeek-OCR", "deepseek-ocr")
    return limits, settings


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


def plan_own(
    config: AnalysisConfig, page: tuple[int, int], views: PageViews, family: Family[Any], architecture: Any
) -> Workload:
    """Work out the workload of a page whose views the model's own processor decides: the mode is left aside."""
    prompt_tokens = config.seq_len or family.prompt_tokens(architecture, views.image_tokens, config.text_tokens)
    return own_workload(
        page,
        views,
        text_tokens=config.text_tokens,
        prompt_tokens=prompt_tokens,
        new_tokens=config.new_tokens,
        batch_size=config.batch_size,
        dtype=config.dtype,
        kv_cache_dtype=_cache_dtype(config),
        decode_context=_decode_context(config, prompt_tokens, family.decoder(architecture).max_positions),
        video_frames=config.video_frames,
    )


def _no_video(config: AnalysisConfig, model: str) -> StagemeterError:
    from stagemeter.models.registry import families

    known = ", ".join(name for name, family in families().items() if family.video is not None)
    return StagemeterError(
        f"video_frames {config.video_frames}: videos are counted of the families {known}, and {model} is of none of "
        "them; leave it out"
    )


def plan_text(config: AnalysisConfig, decoder: LanguageModel) -> Workload:
    """Work out the workload of a model that reads text alone: what is said of pages is left aside.

    The prompt is as long as `seq_len` or `text_tokens` says. What is only at its default is nobody's wish: the few
    tokens that go beside a page are no prompt of their own, so it is `DEFAULT_TEXT_PROMPT` then.
    """
    wanted = config.text_tokens != AnalysisConfig.model_fields["text_tokens"].default
    prompt_tokens = config.seq_len or (config.text_tokens if wanted else DEFAULT_TEXT_PROMPT)
    return text_workload(
        text_tokens=prompt_tokens,
        prompt_tokens=prompt_tokens,
        new_tokens=config.new_tokens,
        batch_size=config.batch_size,
        dtype=config.dtype,
        kv_cache_dtype=_cache_dtype(config),
        decode_context=_decode_context(config, prompt_tokens, decoder.max_positions),
    )


def plan_workload(
    config: AnalysisConfig, architecture: DeepseekOCRArchitecture, files: ProcessorFiles | None = None
) -> Workload:
    """Work out views, tokens and decode context of DeepSeek-OCR.

    Parameters
    ----------
    config : AnalysisConfig
        What is asked for.
    architecture : DeepseekOCRArchitecture
        Sizes of the model.
    files : ProcessorFiles or None
        What its checkpoint says of how pages are prepared.

    Raises
    ------
    StagemeterError
        If the picture cannot be used, or the configuration contradicts the model.
    """
    for setting, given, actual in (
        ("patch_size", config.patch_size, architecture.sam.patch_size),
        ("downsample_ratio", config.downsample_ratio, architecture.downsample_ratio),
    ):
        if given != actual:
            raise StagemeterError(f"{setting}: {given} is not this model's, which is {actual}; leave it out")
    if config.video_frames is not None:
        raise _no_video(config, "DeepSeek-OCR")
    plan = plan_page(config, files)
    image_tokens = plan.image_tokens(config.patch_size, config.downsample_ratio)
    prompt_tokens = config.seq_len or image_tokens + config.text_tokens
    return Workload(
        image_width=plan.width,
        image_height=plan.height,
        mode=config.mode,
        base_size=config.base_size,
        image_size=config.image_size,
        global_views=plan.global_views,
        local_views=plan.local_views,
        tile_grid=plan.grid,
        image_tokens=image_tokens,
        text_tokens=config.text_tokens,
        prompt_tokens=prompt_tokens,
        new_tokens=config.new_tokens,
        batch_size=config.batch_size,
        dtype=config.dtype,
        kv_cache_dtype=_cache_dtype(config),
        decode_context=_decode_context(config, prompt_tokens, architecture.decoder.max_positions),
    )


def _cache_dtype(config: AnalysisConfig) -> str | None:
    """The data type of the cache, where it is another one than that of the rest."""
    return None if config.kv_cache_dtype == config.dtype else config.kv_cache_dtype


def plan_measured(config: AnalysisConfig, model: ModelDescription, measured: Mapping[str, int]) -> Workload:
    """Work out the workload that was really measured, where it is not quite the one that was asked for.

    Parameters
    ----------
    config : AnalysisConfig
        What was asked for.
    model : ModelDescription
        The model.
    measured : mapping
        ``prompt_tokens``, ``new_tokens`` or ``batch_size`` as measured; those left out are as asked for.

    Raises
    ------
    StagemeterError
        If the picture cannot be used, or a number is impossible.
    """
    settings = {"seq_len" if name == "prompt_tokens" else name: value for name, value in measured.items()}
    return plan_request(type(config)(**{**config.model_dump(), **settings}), model)


def require_runnable(workload: Workload) -> None:
    """Refuse a workload that can be counted but not run: one whose prompt has no room for its page.

    Raises
    ------
    StagemeterError
        If it cannot be run.
    """
    if workload.prompt_tokens <= workload.image_tokens:
        raise StagemeterError(
            f"seq_len {workload.prompt_tokens} cannot be run: the page alone takes {workload.image_tokens} tokens, and "
            f"one begins the sequence; leave it out, or give {workload.image_tokens + 1} or more"
        )


def workload_notes(config: AnalysisConfig, workload: Workload, family: Family[Any], architecture: Any) -> list[str]:
    """What one should know about a workload before reading its numbers."""
    needed = family.prompt_tokens(architecture, workload.image_tokens, workload.text_tokens)
    notes = _text_notes(config, workload) if workload.mode == TEXT else _page_notes(config, workload, needed)
    max_positions = family.decoder(architecture).max_positions
    longest = workload.prompt_tokens + workload.decode_steps
    if longest > max_positions:
        notes.append(
            f"the request reaches {longest:,} tokens, more than the {max_positions:,} positions "
            "that the model was made for"
        )
    first, last = decode_span(workload)
    if not first <= workload.decode_context <= last and workload.decode_steps:
        notes.append(
            f"no step of the request attends to {workload.decode_context:,} tokens, at which decode is looked at; "
            f"they attend to {first:,} up to {last:,}"
        )
    return notes


def _text_notes(config: AnalysisConfig, workload: Workload) -> list[str]:
    notes = ["the model reads text alone: what the configuration says of pages is left aside"]
    if config.seq_len is None and workload.prompt_tokens != config.text_tokens:
        notes.append(f"no length was given: the prompt is {workload.prompt_tokens:,} tokens; --text-tokens gives yours")
    return notes


def _page_notes(config: AnalysisConfig, workload: Workload, needed: int) -> list[str]:
    notes = []
    if workload.mode == OWN:
        notes.append(
            "the model's own processor decides the views: mode, sizes and crops of the configuration are left aside"
        )
    if workload.prompt_tokens < needed:
        notes.append(
            f"seq_len {workload.prompt_tokens:,} is shorter than the {needed:,} tokens that page and text need: "
            "prefill and decode are those of the shorter prompt, the vision stages those of the page"
        )
    elif workload.prompt_tokens > needed:
        notes.append(
            f"seq_len {workload.prompt_tokens:,} is longer than the {needed:,} tokens of the page and its text"
        )
    if config.use_synthetic_inputs:
        notes.append("the page is a blank one of the given size; what is on a page does not change its cost")
    return notes


def _page_size(config: AnalysisConfig) -> tuple[int, int]:
    from stagemeter.inputs.page import page_size, require_synthetic_size

    if config.use_synthetic_inputs or config.sample_image_path is None:
        require_synthetic_size(config.image_w, config.image_h)
        return config.image_w, config.image_h
    return page_size(config.sample_image_path)


def _decode_context(config: AnalysisConfig, prompt_tokens: int, max_positions: int) -> int:
    fixed = config.decode_context if isinstance(config.decode_context, int) else None
    mode = "fixed" if isinstance(config.decode_context, int) else config.decode_context
    return select_decode_context_len(mode, fixed, prompt_tokens, config.new_tokens, max_positions)
