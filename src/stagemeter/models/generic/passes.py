"""Running a model without a family on shapes, as a whole and part by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from stagemeter.core.workload import Workload
from stagemeter.models.decoder.kv_cache import RecordedCache, recorded
from stagemeter.models.family import CacheRecorder
from stagemeter.models.generic.caches import (
    Silent,
    cache_name,
    new_cache,
    parts_of_cache,
    require_kept,
    tensors_of_cache,
)
from stagemeter.models.generic.calls import Call, calls_of
from stagemeter.models.generic.found import KEPT, FoundModel, page_of, text_tokens, token_types
from stagemeter.models.generic.page import taken_by


def run_modules(found: FoundModel, workload: Workload, recorder: CacheRecorder, modules: Sequence[str]) -> None:
    """Run modules before the decoder, each with the arguments of a pass of the whole model."""
    language = found.parts.language
    # The pass ends before the decoder, unless the decoder calls the modules.
    until = "" if any(name.startswith(f"{language}.") for name in modules) else language
    with torch.no_grad(), recorder.paused(), found.knowing(), calls_of(found.model, modules, until) as calls:
        # A shorter prompt would have no room for the page.
        tokens = max(workload.prompt_tokens, workload.image_tokens + 1)
        _call_whole(found, workload, new_cache(found.model, Silent()), tokens, pages=True)
    with found.knowing():
        for module, args, kwargs in calls:
            module(*args, **kwargs)


def run_language(
    found: FoundModel,
    workload: Workload,
    recorder: CacheRecorder,
    tokens: int,
    cached: int,
    also: Sequence[str] = (),
) -> None:
    """Run the decoder over new tokens after cached ones, the output head, and the modules `also`."""
    parts, model = found.parts, found.model
    language = model.get_submodule(parts.language)
    calls = _seen(found, workload, recorder, (*also, parts.language, *parts.tail), tokens, cached)
    cache = _filled(found, workload, cached, recorder)
    with found.knowing():
        for module, args, kwargs in calls:
            if module is not language:
                module(*args, **kwargs)
            elif parts.takes_more:
                module(*args, **{**kwargs, cache_name(model): cache})
            else:
                ids = text_tokens(found, workload.batch_size, tokens)
                # Some drop positions of the prompt early if later layers need only the last one.
                kept = {name: kwargs[name] for name in (KEPT,) if name in kwargs}
                module(input_ids=ids, use_cache=True, **{cache_name(model): cache}, **kept)


def run_whole(
    found: FoundModel, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int, pages: bool
) -> None:
    """Run the whole model over new tokens after cached ones, as ``generate`` does."""
    cache = _filled(found, workload, cached, recorder)
    with recorder.paused():
        encoded = None if pages else _encoded(found, workload)
    with found.knowing():
        _call_whole(found, workload, cache, tokens, pages, encoded)


def cached_elements(found: FoundModel, workload: Workload, tokens: int) -> int:
    """Return the elements of a cache after some tokens, with those of an encoder's output."""
    cache = _filled(found, workload, tokens, Silent())
    return sum(tensor.numel() for tensor in tensors_of_cache(cache))


def order_of_calls(found: FoundModel, workload: Workload, modules: Iterable[str]) -> list[str]:
    """Return the modules that a pass over a page and its prompt calls, in order."""
    from stagemeter.counting.counter import CostCounter

    # A counter runs equal layers once.
    cache = new_cache(found.model, Silent())
    with torch.no_grad(), CostCounter(found.model), calls_of(found.model, modules) as calls, found.knowing():
        _call_whole(found, workload, cache, workload.prompt_tokens, found.reads_pages)
    require_kept(found.model, cache)
    return _named(found, modules, calls)


def called_in_step(found: FoundModel, workload: Workload, modules: Sequence[str]) -> list[str]:
    """Return the modules that a decode step calls, in order."""
    cache = _filled(found, workload, workload.prompt_tokens, Silent())
    encoded = _encoded(found, workload)
    with torch.no_grad(), calls_of(found.model, modules) as calls, found.knowing():
        _call_whole(found, workload, cache, 1, pages=False, encoded=encoded)
    return _named(found, modules, calls)


def _named(found: FoundModel, modules: Iterable[str], calls: Iterable[Call]) -> list[str]:
    names = {found.model.get_submodule(name): name for name in modules}
    return list(dict.fromkeys(names[module] for module, _, _ in calls))


def _call_whole(
    found: FoundModel, workload: Workload, cache: Any, tokens: int, pages: bool, encoded: Any = None
) -> None:
    model, parts, batch = found.model, found.parts, workload.batch_size
    options: dict[str, Any] = {"use_cache": True, cache_name(model): cache}
    if found.keeps_one_position:
        options[KEPT] = 1
    if parts.writer and not pages:
        # As ``generate`` does: the cache has the pages, and the whole model would ask for pictures.
        model = model.get_submodule(parts.writer)
    page = page_of(found, workload) if pages and found.reads_pages else {}
    if parts.encoder:
        options["decoder_input_ids"] = text_tokens(found, batch, tokens)
        if not pages:
            options["encoder_outputs"] = encoded
        elif found.encodes_text:
            encoded_tokens = workload.image_tokens + workload.text_tokens
            page["input_ids"] = text_tokens(found, batch, encoded_tokens, workload.image_tokens)
    else:
        image = workload.image_tokens if pages and not parts.takes_more else 0
        page["input_ids"] = text_tokens(found, batch, tokens, image)
        if pages and found.reads_pages:
            page |= token_types(found, batch, tokens, workload.image_tokens)
    model(**options, **taken_by(model.forward, page))


def _encoded(found: FoundModel, workload: Workload) -> Any:
    """Return an encoder's output as a decode step takes it; None without an encoder."""
    from transformers.modeling_outputs import BaseModelOutput

    if not found.parts.encoder:
        return None
    with torch.no_grad(), found.knowing(), calls_of(found.model, [found.parts.language]) as calls:
        _call_whole(found, workload, new_cache(found.model, Silent()), 1, pages=True)
    return BaseModelOutput(last_hidden_state=calls[0][2]["encoder_hidden_states"])


def _seen(
    found: FoundModel, workload: Workload, recorder: CacheRecorder, modules: Sequence[str], tokens: int, cached: int
) -> list[Call]:
    """Return the calls of some modules in a pass of the whole model, which is not counted."""
    with torch.no_grad(), recorder.paused(), found.knowing():
        if found.parts.takes_more:
            cache = _filled(found, workload, cached, Silent())
            encoded = _encoded(found, workload) if cached else None
            with calls_of(found.model, modules) as calls:
                _call_whole(found, workload, cache, tokens, not cached, encoded)
        else:
            # Without cached tokens, because the head's inputs are the same.
            with calls_of(found.model, modules) as calls:
                _call_whole(found, workload, new_cache(found.model, Silent()), tokens, pages=False)
    return calls


def _filled(found: FoundModel, workload: Workload, tokens: int, recorder: CacheRecorder) -> Any:
    """Return a cache that earlier passes filled with some tokens; filling it is not counted."""
    cache = new_cache(found.model, Silent())
    if tokens:
        with torch.no_grad(), recorder.paused(), found.knowing():
            if found.parts.takes_more:
                _call_whole(found, workload, cache, tokens, pages=True)
            else:
                language = found.model.get_submodule(found.parts.language)
                ids = text_tokens(found, workload.batch_size, tokens)
                language(input_ids=ids, use_cache=True, **{cache_name(found.model): cache})
        require_kept(found.model, cache)
    for part in parts_of_cache(cache):
        if isinstance(part, RecordedCache):
            part.recorder = recorder
        else:
            recorded(part, recorder)
        for layer in part.layers:
            # Keys and values of an encoder's output or a page are read, and never appended to.
            if isinstance(held := getattr(layer, "keys", None), torch.Tensor):
                recorder.record_cache_update(held, layer.values, added=0)
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                for state in (*layer.conv_states.values(), *layer.recurrent_states.values()):
                    if state is not None:
                        recorder.record_state(state, added=0)
    return cache
