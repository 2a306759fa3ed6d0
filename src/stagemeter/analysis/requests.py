"""From a configuration to the workload it asks for. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import own_views, plan_page, settings_of, size_of_page
from stagemeter.core.errors import StagemeterError
from stagemeter.core.setting import table
from stagemeter.core.settings import RequestSettings
from stagemeter.core.workload import OWN, TEXT, Workload
from stagemeter.models.closed_form import decode_span
from stagemeter.models.families.deepseek_ocr.configuration import DeepseekOCRArchitecture
from stagemeter.models.family import Family, LanguageModel, PageViews, own_workload, text_workload
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.pages.settings import ProcessorFiles
from stagemeter.utilization.stage_mfu import select_decode_context_len

#: Tokens of a prompt to a model that reads text alone, where no length is given.
DEFAULT_TEXT_PROMPT = 1024


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


def plan_request(config: AnalysisConfig, model: ModelDescription) -> Workload:
    """Work out what a configuration asks of a model: pages and text, or text alone.

    Raises
    ------
    StagemeterError
        If the picture cannot be used, or the configuration contradicts the model.
    """
    family, architecture = model.family, model.architecture
    if not family.reads_pages:
        settings_of(config).refuse_unused(model.name, family.name)
        if config.video_frames is not None:
            raise _no_video(config, model.name)
        return plan_text(config, family.decoder(architecture))
    if family.views is None:
        return plan_workload(config, architecture, model.processor)
    if config.video_frames is not None and family.video is None:
        raise _no_video(config, model.name)
    width, height = size_of_page(config)
    views, _ = own_views(config, model, width, height)
    return plan_own(config, (width, height), views, family, architecture)


def plan_own(
    config: AnalysisConfig, page: tuple[int, int], views: PageViews, family: Family[Any], architecture: Any
) -> Workload:
    """Work out the workload of a page whose views the model's own processor decides: the mode is left aside."""
    prompt_tokens = config.seq_len or family.prompt_tokens(architecture, views.image_tokens, config.text_tokens)
    return own_workload(
        page,
        views,
        prompt_tokens=prompt_tokens,
        decode_context=_decode_context(config, prompt_tokens, family.decoder(architecture).max_positions),
        **_asked(config),
    )


def _no_video(config: AnalysisConfig, model: str) -> StagemeterError:
    from stagemeter.models.families import families

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
        prompt_tokens=prompt_tokens,
        decode_context=_decode_context(config, prompt_tokens, decoder.max_positions),
        **{**_asked(config), "text_tokens": prompt_tokens},
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
        prompt_tokens=prompt_tokens,
        decode_context=_decode_context(config, prompt_tokens, architecture.decoder.max_positions),
        **_asked(config),
    )


def _asked(config: AnalysisConfig) -> dict[str, Any]:
    """Return the settings that a workload takes as they are; a cache of the same type as the rest needs no saying."""
    asked = {name: getattr(config, name) for name in table(RequestSettings)}
    return asked | {"kv_cache_dtype": None if config.kv_cache_dtype == config.dtype else config.kv_cache_dtype}


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
    from stagemeter.models.families.deepseek_ocr.page import page_count

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
    further = 0 if config.sample_image_path is None else page_count(config.sample_image_path) - 1
    if further:
        notes.append(
            f"the picture has {further:,} further page{'s' * (further > 1)}, left out: its first one is the page"
        )
    if config.use_synthetic_inputs:
        notes.append("the page is a blank one of the given size; what is on a page does not change its cost")
    return notes


def _decode_context(config: AnalysisConfig, prompt_tokens: int, max_positions: int) -> int:
    fixed = config.decode_context if isinstance(config.decode_context, int) else None
    mode = "fixed" if isinstance(config.decode_context, int) else config.decode_context
    return select_decode_context_len(mode, fixed, prompt_tokens, config.new_tokens, max_positions)
