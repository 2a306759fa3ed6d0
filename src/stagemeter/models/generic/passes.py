"""Running a model that nobody described: its parts alone, and as a whole, on shapes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from stagemeter.counting.known_values import KnownValues
from stagemeter.errors import StagemeterError
from stagemeter.models.family import CacheRecorder
from stagemeter.models.generic.page import Page, make_page, taken_by
from stagemeter.models.generic.parts import Parts, find_parts, image_features
from stagemeter.models.key_value_cache import RecordedCache
from stagemeter.workload import Workload, stable_hash

if TYPE_CHECKING:
    from transformers import Cache

#: A token of text, in every vocabulary.
_TEXT_TOKEN = 3
#: Names that configurations give to the token that stands for a picture.
_PLACEHOLDERS = ("image_token_id", "image_token_index")


@dataclass(frozen=True)
class FoundModel:
    """A model and what was found out about it.

    Attributes
    ----------
    config : mapping
        What its ``config.json`` holds.
    preprocessing : mapping
        What its ``preprocessor_config.json`` holds; empty where there is none.
    model : transformers.PreTrainedModel
        The model, on the meta device.
    parts : Parts
        Its parts.
    known : KnownValues
        What is known of the values of its tensors.
    """

    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    model: Any
    parts: Parts
    known: KnownValues = field(default_factory=KnownValues)

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal configurations."""
        return stable_hash(dict(self.config))

    @cached_property
    def reads_pages(self) -> bool:
        """Whether it makes embeddings of pictures."""
        return bool(self.parts.vision) or image_features(self.model) is not None

    def page(self, width: int, height: int, batch: int) -> Page:
        """What a batch of blank pages becomes."""
        return make_page(self.model.config, self.preprocessing, width, height, batch)


def find_model(config: Mapping[str, Any], preprocessing: Mapping[str, Any], model: Any) -> FoundModel:
    """Find out about a model that is built."""
    return FoundModel(config, preprocessing, model, find_parts(model))


def run_vision(found: FoundModel, workload: Workload, recorder: CacheRecorder) -> None:
    """Run what makes embeddings of the pages, and nothing else."""
    with found.known:
        features_of(found, _page_of(found, workload))


def run_language(found: FoundModel, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int) -> None:
    """Run the decoder over new tokens after those that are cached, and the head."""
    model, parts = found.model, found.parts
    cache = _filled(found, workload.batch_size, cached, recorder)
    with found.known:
        out = _call_language(found, _text(found, workload.batch_size, tokens), cache)
        hidden = out[0] if not isinstance(out, Mapping) else next(iter(out.values()))
        model.get_submodule(parts.head)(hidden[:, -1:] if parts.passes_one_position else hidden)


def run_whole(
    found: FoundModel, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int, pages: bool
) -> None:
    """Run the whole model over new tokens after those that are cached, as ``generate`` does."""
    model = found.model
    cache = _filled(found, workload.batch_size, cached, recorder)
    with found.known:
        page = _page_of(found, workload) if pages else {}
        ids = _text(found, workload.batch_size, tokens, workload.image_tokens if pages else 0)
        options = {"logits_to_keep": 1} if found.parts.passes_one_position else {}
        if pages:
            page |= _token_types(found, ids)
        model(input_ids=ids, use_cache=True, **{_cache_name(model): cache}, **options, **taken_by(model.forward, page))


def cached_elements(found: FoundModel, batch: int, tokens: int) -> int:
    """Elements that a cache holds after a prompt of some tokens."""
    cache = _filled(found, batch, tokens, _Silent())
    return sum(tensor.numel() for tensor in _tensors_of(cache))


def features_of(found: FoundModel, page: Mapping[str, Any]) -> list[torch.Tensor]:
    """Embeddings of pages, as the model's own code makes them; of some models a tensor for each page."""
    method = image_features(found.model)
    if method is None:
        tower = found.model.get_submodule(found.parts.vision)
        out = tower(**taken_by(tower.forward, page))
        return [out[0]]
    out = method(**taken_by(method, page))
    out = getattr(out, "pooler_output", out)
    return [item for item in tree_flatten(out)[0] if isinstance(item, torch.Tensor)]


def image_tokens(found: FoundModel, page: Mapping[str, torch.Tensor]) -> int:
    """Tokens that one page becomes in the language model."""
    with torch.no_grad(), found.known:
        return sum(part.shape[:-1].numel() for part in features_of(found, bare(found, page)))


def bare(found: FoundModel, page: Mapping[str, Any]) -> dict[str, Any]:
    """A page on the meta device, with its values, since some models look at pixels to find views that are padding."""

    def shape_of(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = found.model.dtype if value.is_floating_point() else value.dtype
        made = torch.empty(value.shape, dtype=dtype, device="meta")
        found.known.give(made, value)
        return made

    made: dict[str, Any] = tree_map(shape_of, dict(page))
    return made


def _page_of(found: FoundModel, workload: Workload) -> dict[str, Any]:
    page = found.page(workload.image_width, workload.image_height, workload.batch_size)
    return bare(found, page.inputs)


def _text(found: FoundModel, batch: int, tokens: int, image: int = 0) -> torch.Tensor:
    """Token ids: one that begins the sequence, those that stand for a page, text."""
    row = [_TEXT_TOKEN] * tokens
    if image:
        row[1 : 1 + image] = [_placeholder(found.model.config)] * image
    ids = torch.empty(batch, len(row), dtype=torch.long, device="meta")
    found.known.give(ids, torch.tensor([row] * batch))
    return ids


def _token_types(found: FoundModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens stand for a page, by the names that models ask for it."""
    types = (ids == _placeholder(found.model.config)).long()
    return {"mm_token_type_ids": types, "token_type_ids": types}


def _placeholder(config: Any) -> int:
    for name in _PLACEHOLDERS:
        if isinstance(token := getattr(config, name, None), int):
            return token
    return _TEXT_TOKEN


def _cache_name(model: Any) -> str:
    for module in (model, model.get_decoder()):
        parameters = inspect.signature(module.forward).parameters
        for name in ("past_key_values", "cache_params"):
            if name in parameters:
                return name
    raise StagemeterError(f"{type(model).__name__} takes no cache: every new token runs all that came before again")


def _call_language(found: FoundModel, ids: torch.Tensor, cache: Cache) -> Any:
    language = found.model.get_submodule(found.parts.language)
    return language(input_ids=ids, use_cache=True, **{_cache_name(found.model): cache})


def _filled(found: FoundModel, batch: int, tokens: int, recorder: CacheRecorder) -> Cache:
    """A cache that holds what the decoder left of some tokens; filling it is not counted."""
    cache = RecordedCache(_Silent(), found.model.config.get_text_config(decoder=True))
    if tokens:
        with torch.no_grad(), recorder.paused(), found.known:
            _call_language(found, _text(found, batch, tokens), cache)
    cache.recorder = recorder
    return cache


def _tensors_of(cache: Any) -> list[torch.Tensor]:
    found = []
    for layer in cache.layers:
        found += [item for item in tree_flatten(list(vars(layer).values()))[0] if isinstance(item, torch.Tensor)]
    return found


class _Silent:
    """Takes no note of anything."""

    def record_cache_update(self, key: Any, value: Any, added: int) -> None:
        """Nothing is counted."""

    def paused(self) -> AbstractContextManager[None]:
        """Nothing runs that would be."""
        from contextlib import nullcontext

        return nullcontext()
