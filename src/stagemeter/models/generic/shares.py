"""The part of each module in a request, found by running the model once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.generic.causality import causal_masks, declare_causal
from stagemeter.models.generic.features import page_views, prompt_tokens
from stagemeter.models.generic.found import FoundModel
from stagemeter.models.generic.parts import sees_pages
from stagemeter.models.generic.passes import called_in_step, order_of_calls
from stagemeter.models.page_views import NO_PAGE, workload_of_views

#: Width and height of the page, and tokens of text, of the trial request.
TRIAL_PAGE, _TRIAL_TEXT = (640, 480), 4


@dataclass(frozen=True, slots=True)
class Shares:
    """Modules by their part in a request; those of the decoder and its head are parts.

    ``decoder`` holds the decoder, or its inner modules if it sees pages itself. ``step`` holds modules outside of it
    that each decode step also runs, ``idle`` those that nothing runs.
    """

    vision: tuple[str, ...]
    projector: tuple[str, ...]
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    step: tuple[str, ...]
    idle: tuple[str, ...]


def find_shares(found: FoundModel) -> tuple[Shares, FoundModel]:
    """Find the part of each module by running the model once; return the model with its tail, too."""
    parts, trial = found.parts, _trial(found)
    candidates = [name for name in (parts.vision, *parts.rest) if name]
    named = [name for name in (parts.encoder, parts.language, *parts.tail) if name]
    language = found.model.get_submodule(parts.language)
    with causal_masks(language) as made:
        order = order_of_calls(found, trial, [*named, *_with_inner(found.model, candidates)])
    if made and not parts.encoder:
        declare_causal(language)
    split = {name: _called(found.model, name, set(order)) for name in candidates}
    rest = [name for part in parts.rest for name in split[part].called]
    after = [name for name in order if order.index(name) > order.index(parts.language) and name in rest]
    before = tuple(name for name in rest if name not in after)
    found = replace(found, parts=replace(parts, tail=(*after, *parts.tail)))
    step = tuple(called_in_step(found, trial, before)) if before else ()
    inside = _inside(found, trial)
    idle = (*(name for part in candidates for name in split[part].idle), *inside.idle)
    if parts.encoder and not parts.vision:
        return Shares((), (), (parts.encoder, *before), inside.text, step, idle), found
    encoder = (parts.encoder,) if parts.encoder else ()
    if found.reads_pages and not (order and (before or inside.pages or any(split[part].called for part in candidates))):
        raise StagemeterError(
            f"model: {type(found.model).__name__} is given a page, and nothing of it looks at one. Give its "
            "configuration the token that stands for a page, such as image_token_id"
        )
    # Without a tower, the modules that make embeddings of pixels are the tower.
    vision, projector = (split[parts.vision].called, before) if parts.vision else (before, ())
    return Shares((*vision, *inside.pages), projector, encoder, inside.text, step, idle), found


@dataclass(frozen=True, slots=True)
class _Called:
    """Modules that a pass calls, a module itself or inner ones in its place, and modules that it does not."""

    called: tuple[str, ...]
    idle: tuple[str, ...]


def _called(model: Any, name: str, order: Collection[str]) -> _Called:
    if name in order:
        return _Called((name,), ())
    children = [_called(model, f"{name}.{child}", order) for child, _ in model.get_submodule(name).named_children()]
    called = tuple(inner for child in children for inner in child.called)
    idle = tuple(inner for child in children for inner in child.idle)
    return _Called(called, idle) if called else _Called((), (name,))


@dataclass(frozen=True, slots=True)
class _Inside:
    """Modules of a decoder that sees pages itself: those for text, those only for pages, and unused ones."""

    text: tuple[str, ...]
    pages: tuple[str, ...]
    idle: tuple[str, ...]


def _inside(found: FoundModel, trial: Workload) -> _Inside:
    """Split a decoder that sees pages itself into modules by use; any other decoder stays whole."""
    language = found.parts.language
    module = found.model.get_submodule(language)
    if found.parts.vision or not sees_pages(module):
        return _Inside((language,), (), ())
    children = [f"{language}.{name}" for name, _ in module.named_children()]
    inner = list(_with_inner(found.model, children))
    in_step = set(called_in_step(found, trial, inner))
    on_page = set(order_of_calls(found, trial, inner)) - in_step
    text: list[str] = []
    pages: list[str] = []
    idle: list[str] = []
    for name in children:
        of_text = _called(found.model, name, in_step)
        of_pages = _called(found.model, name, on_page)
        text += of_text.called
        if not of_text.called:
            pages += of_pages.called
            idle += of_pages.idle
    return _Inside(tuple(text), tuple(pages), tuple(idle))


def _with_inner(model: Any, names: Iterable[str]) -> Iterator[str]:
    """Yield modules and all modules inside them."""
    for name in names:
        for inner, _ in model.get_submodule(name).named_modules():
            yield f"{name}.{inner}" if inner else name


def _trial(found: FoundModel) -> Workload:
    """Return a small request that shows which modules run."""
    page, views = (TRIAL_PAGE, page_views(found, *TRIAL_PAGE)) if found.reads_pages else ((0, 0), NO_PAGE)
    asked: dict[str, Any] = {
        "text_tokens": _TRIAL_TEXT,
        "prompt_tokens": prompt_tokens(found, views.image_tokens, _TRIAL_TEXT),
        "new_tokens": 1,
        "batch_size": 1,
        "dtype": "bfloat16",
        "decode_context": 1,
    }
    return workload_of_views(page, views, **asked)
