"""Workloads: what a configuration asks of a model. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import page_views, pages_left_out, settings_of, sizes_of_pages
from stagemeter.core.errors import StagemeterError
from stagemeter.core.notes import KeyNote
from stagemeter.core.setting import table
from stagemeter.core.settings import RequestSettings
from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.core.workload import OWN, TEXT, Workload, decode_context_of
from stagemeter.models.closed_form import decode_span
from stagemeter.models.decoder.stages import ENCODER_TOKENS
from stagemeter.models.family import Family, GenerationPass
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.page_views import NO_PAGE, PageViews, RequestPages, workload_of_views

#: Tokens of a prompt of text alone if no length is given.
DEFAULT_TEXT_PROMPT = 1024
#: Settings that each request of a log has for itself, or that no log has; and those of a page.
OF_REQUESTS = (
    *("text_tokens", "new_tokens", "seq_len", "batch_size", "cached_tokens", "decode_context"),
    "video_frames",
)
OF_PAGES = ("sample_image_path", "image_w", "image_h", "dpi", "images_per_request", "further_pages")


def refuse_settings(config: AnalysisConfig, settings: Iterable[str]) -> None:
    """Refuse settings that each request has for itself, if they are given."""
    for setting in settings:
        if setting in config.model_fields_set:
            raise StagemeterError(f"{setting} {getattr(config, setting)}: each request says its own. Leave it out")


def refuse_adapter(config: AnalysisConfig, what: str) -> None:
    """Refuse a configuration with an adapter, which `what` does not count."""
    if config.adapter is not None:
        raise StagemeterError(f"adapter {config.adapter}: {what} counts no adapters, but analyze does. Leave it out")


def refuse_parts(config: AnalysisConfig, what: str) -> None:
    """Refuse a configuration that computes a prompt in parts, which `what` does not take."""
    for setting in ("cached_tokens", "chunk_tokens"):
        value = getattr(config, setting)
        if value is not None:
            raise StagemeterError(f"{setting} {value}: {what} takes whole prompts. Leave it out")


def plan_request(config: AnalysisConfig, model: ModelDescription) -> Workload:
    """Return the workload that a configuration asks of a model: a page and text, or text alone."""
    family = model.family
    if config.video_frames is not None and not family.videos:
        raise no_video(f"video_frames {config.video_frames}", model.name)
    if family.reads_pages:
        (first, *further), _ = request_pages(config, model)
    else:
        settings_of(config).refuse_unused(model.name, family.name)
        first, further = RequestPages(1, (0, 0), NO_PAGE), []
    workload = make_workload(
        family,
        model.architecture,
        first.size,
        first.views,
        further,
        seq_len=config.seq_len,
        decode_context=config.decode_context,
        **{**_asked(config), "text_tokens": _text_tokens(config, family)},
    )
    for setting in ("cached_tokens", "chunk_tokens"):
        if getattr(workload, setting) is not None:
            require_parts(setting, workload, model)
    return workload


def request_pages(config: AnalysisConfig, model: ModelDescription) -> tuple[list[RequestPages], tuple[str, ...]]:
    """Return the first page of a request and those behind it, and notes that name the limits of the first.

    Several pages are refused for a model that takes one.
    """
    first, *others = sizes_of_pages(config)
    views, notes = page_views(config, model, *first, among=bool(others))
    pages, tags = [RequestPages(1, first, views)], model.family.tags
    for size, equal in groupby(others):
        if tags is None:
            given = "image_w" if config.sample_image_path is None else "sample_image_path"
            setting = given if config.images_per_request is None else "images_per_request"
            raise one_page_alone(setting, 1 + len(others), model)
        views, _ = page_views(config, model, *size, among=True)
        pages.append(RequestPages(len(list(equal)), size, views, tags(model.architecture, views)))
    return pages, notes


def one_page_alone(setting: str, pages: int, model: ModelDescription) -> StagemeterError:
    """Make the error of a model that takes one page a request, where `setting` gives several."""
    return StagemeterError(
        f"{setting}: {pages} pages, and {model.name} ({model.family.name}) is counted with one page a request. Give "
        "one page; `stagemeter sweep` and `stagemeter tokens` take several, each a request of its own"
    )


def require_parts(setting: str, workload: Workload, model: ModelDescription) -> None:
    """Refuse to compute a part of a prompt where nothing is left, or no cache holds what is before it."""
    given, family = f"{setting} {getattr(workload, setting)}", model.family
    if not family.has_closed_forms:
        raise StagemeterError(
            f"{given}: {model.name} is counted by running it, and a prompt is run whole. Leave it out"
        )
    if workload.past_tokens >= workload.prompt_tokens:
        raise StagemeterError(
            f"{given}: the prompt has {workload.prompt_tokens} tokens, and the last one is always computed. Give at "
            f"most {workload.prompt_tokens - 1}"
        )
    # Closed forms refuse parts of prompts that are read both ways.
    calls = family.stage(PREFILL).needed.calls(model.architecture, workload)
    if any(values.get(ENCODER_TOKENS) for values in calls):
        raise StagemeterError(
            f"{given}: {model.name} attends to its page besides the prompt, and caches of prompts do not hold it. "
            "Leave it out"
        )
    pages = workload.all_image_tokens + workload.tags
    if not workload.cuts_page or pages > workload.prompt_tokens:
        return
    if workload.further_pages is None:
        raise StagemeterError(
            f"{given}: the page begins the prompt with {pages} tokens, and a part of a page is not counted. Give as "
            "many or more"
        )
    whole = workload.pages_cached
    before, after = workload.end_of_page(whole), workload.end_of_page(whole + 1)
    raise StagemeterError(
        f"{given}: cuts page {whole + 1} of {workload.pages}, and a part of a page is not counted. Give "
        f"{f'{before} for the pages before it, or ' if whole else ''}{after} with it"
    )


def require_generation(given: str, workload: Workload, model: ModelDescription) -> GenerationPass:
    """Return the cost of passes over several generated tokens, or refuse a model or a request that has none."""
    found = model.family.stage(PREFILL).needed.generation_pass if model.family.has_closed_forms else None
    if found is None:
        raise StagemeterError(f"{given}: {model.name} is counted by running it, and drafts are not run. Leave it out")
    if any(values.get(ENCODER_TOKENS) for values in model.family.stage(DECODE).calls(model.architecture, workload)):
        raise StagemeterError(
            f"{given}: {model.name} attends to its page besides the prompt, and such passes are not counted. Leave it "
            "out"
        )
    if not workload.decode_steps:
        raise StagemeterError(f"{given}: the request decodes no token after the first. Give more new_tokens")
    return found


def _text_tokens(config: AnalysisConfig, family: Family[Any]) -> int:
    given = family.reads_pages or "text_tokens" in config.model_fields_set
    return config.text_tokens if given else DEFAULT_TEXT_PROMPT


def recorded_settings(config: AnalysisConfig, family: Family[Any]) -> dict[str, Any]:
    """Return the settings that a document keeps: as given, or as the family takes them where they were not."""
    return {**config.model_dump(), "text_tokens": _text_tokens(config, family)}


def make_workload(
    family: Family[Any],
    architecture: Any,
    page: tuple[int, int],
    views: PageViews,
    further: Sequence[RequestPages] = (),
    *,
    text_tokens: int,
    new_tokens: int,
    seq_len: int | None,
    decode_context: int | str,
    **asked: Any,
) -> Workload:
    """Return the workload of a page that becomes some views, and of further ones. Tokens and batch may be arrays.

    `page`, `views` and `further` are those of `stagemeter.models.page_views.workload_of_views`. A `seq_len` of None is
    the length of pages and text. `asked` holds the other fields of `Workload`.
    """
    prompt_tokens = text_tokens
    if seq_len is not None:
        prompt_tokens = seq_len + 0 * text_tokens
    elif family.reads_pages:
        image = views.image_tokens + sum(one.times * one.views.image_tokens for one in further)
        tags = sum(one.times * one.tags for one in further)
        prompt_tokens = family.prompt_tokens(architecture, image, text_tokens) + tags
    return workload_of_views(
        page,
        views,
        further,
        # A request of text alone has only the tokens of its prompt.
        text_tokens=text_tokens if family.reads_pages else prompt_tokens,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        decode_context=decode_context_of(
            decode_context, prompt_tokens, new_tokens, family.decoder(architecture).max_positions
        ),
        **asked,
    )


def no_video(given: str, model: str) -> StagemeterError:
    """Make the error of a model that reads no videos; `given` begins it."""
    from stagemeter.models.families import families

    known = ", ".join(name for name, family in families().items() if family.videos)
    return StagemeterError(f"{given}: {model} reads no videos. The families {known} do; leave it out")


def _asked(config: AnalysisConfig) -> dict[str, Any]:
    """Return the settings that a workload takes as they are; None for a cache in the dtype of the rest."""
    asked = {name: getattr(config, name) for name in table(RequestSettings)}
    return asked | {"kv_cache_dtype": None if config.kv_cache_dtype == config.dtype else config.kv_cache_dtype}


def plan_measured(config: AnalysisConfig, model: ModelDescription, measured: Mapping[str, int]) -> Workload:
    """Return the measured workload, which may differ from the configured one.

    `measured` can hold ``prompt_tokens``, ``new_tokens`` and ``batch_size``.
    """
    settings = {"seq_len" if name == "prompt_tokens" else name: value for name, value in measured.items()}
    return plan_request(type(config)(**{**config.model_dump(exclude_unset=True), **settings}), model)


def require_runnable(workload: Workload, model: ModelDescription, measured: str | None = None) -> None:
    """Refuse a workload that can be counted but not run: a prompt without room for its page.

    `measured` is the source that the length of the prompt was read from; None: it was given.
    """
    taken = workload.all_image_tokens + workload.tags
    pages = "the page alone takes" if workload.pages == 1 else f"the {workload.pages:,} pages alone take"
    if model.family.page_in_prompt(model.architecture) and workload.prompt_tokens <= taken:
        if measured is not None:
            raise StagemeterError(
                f"{measured}: the prompts that were measured have {workload.prompt_tokens:,} tokens, and a page takes "
                f"{taken:,} of {model.name}. Give the model that was served as --model, and the size of its pages as "
                "--page-size"
            )
        raise StagemeterError(
            f"seq_len {workload.prompt_tokens}: cannot be run: {pages} {taken} tokens, "
            f"and one begins the sequence. Leave it out, or give {taken + 1} or more"
        )


def workload_notes(config: AnalysisConfig, workload: Workload, family: Family[Any], architecture: Any) -> list[str]:
    """Return notes that a workload's numbers depend on."""
    needed = family.prompt_tokens(architecture, workload.all_image_tokens, workload.text_tokens) + workload.tags
    notes = _text_notes(config, workload) if workload.mode == TEXT else _page_notes(config, workload, needed)
    max_positions = family.decoder(architecture).max_positions
    longest = workload.prompt_tokens + workload.decode_steps
    if longest > max_positions:
        notes.append(
            KeyNote(
                f"the request reaches {longest:,} tokens, more than the {max_positions:,} positions "
                "that the model was made for"
            )
        )
    if workload.chunk_tokens is not None:
        passes = len(workload.prefill_passes)
        notes.append(KeyNote(f"the prefill takes {passes:,} passes of at most {workload.chunk_tokens:,} tokens"))
    if workload.cached_tokens is not None:
        page = ", the page among them, which is not encoded" if workload.page_cached else ""
        if workload.further_pages is not None and workload.pages_cached:
            page = f", {workload.pages_cached:,} of {workload.pages:,} pages among them, which are not encoded"
        notes.append(
            KeyNote(
                f"the prefill computes {workload.computed_tokens:,} of {workload.prompt_tokens:,} tokens: the cache "
                f"holds the first {workload.cached_tokens:,}{page}"
            )
        )
    first, last = decode_span(workload)
    if not first <= workload.decode_context <= last and workload.decode_steps:
        notes.append(
            KeyNote(
                f"no step of the request attends to {workload.decode_context:,} tokens, the context of the reported "
                f"step; they attend to {first:,} up to {last:,}"
            )
        )
    return notes


def _text_notes(config: AnalysisConfig, workload: Workload) -> list[str]:
    notes = ["the model reads text alone: settings of pages have no effect"]
    if config.seq_len is None and "text_tokens" not in config.model_fields_set:
        notes.append(
            KeyNote(f"no length was given: the prompt is {workload.prompt_tokens:,} tokens; --text-tokens sets it")
        )
    return notes


def _page_notes(config: AnalysisConfig, workload: Workload, needed: int) -> list[str]:
    notes = []
    if workload.mode == OWN:
        notes.append(
            "the model's own processor decides the views: mode, sizes and crops of the configuration have no effect"
        )
    if workload.further_pages is not None:
        notes.append(
            f"the {workload.pages:,} pages of the request are encoded each on its own, and one prompt holds them; the "
            f"further ones add {workload.tags:,} tokens around them, while those around the first are text tokens"
        )
    if workload.prompt_tokens < needed:
        notes.append(
            KeyNote(
                f"seq_len {workload.prompt_tokens:,} is shorter than the {needed:,} tokens that page and text need: "
                "prefill and decode are those of the shorter prompt, the vision stages those of the page"
            )
        )
    elif workload.prompt_tokens > needed:
        notes.append(
            KeyNote(f"seq_len {workload.prompt_tokens:,} is longer than the {needed:,} tokens of the page and its text")
        )
    if further := pages_left_out(config):
        notes.append(
            KeyNote(
                f"left out: {further:,} further page{'s' * (further > 1)} of a file, whose first one counts. Numbers "
                "name pages of a PDF: scan.pdf[1-3]"
            )
        )
    if config.use_synthetic_inputs:
        notes.append("the page is a blank one of the given size; what is on a page does not change its cost")
    return notes
