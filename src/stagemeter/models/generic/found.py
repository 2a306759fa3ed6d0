"""A model without a family, its parts, and the tokens and pages that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch.utils._pytree import tree_map

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload, stable_hash
from stagemeter.counting.known_values import KnownValues
from stagemeter.models.generic.page import Page, make_page
from stagemeter.models.generic.parts import Parts, image_features, parameters_of

#: A token of text, in every vocabulary.
_TEXT_TOKEN = 3
#: Settings that hold the token that stands for a picture.
_PLACEHOLDERS = ("image_token_id", "image_token_index", "image_patch_id")
#: Arguments of models that say which tokens stand for a picture.
_TYPES = ("mm_token_type_ids", "token_type_ids", "image_embeds_position_mask")
#: Argument of models for the text that chooses what they see of a page.
QUESTION = "qformer_input_ids"
#: Argument of models for the number of positions that need logits.
KEPT = "logits_to_keep"


@dataclass(frozen=True)
class FoundModel:
    """A model with its parts.

    `config` and `preprocessing` are the contents of ``config.json`` and of ``preprocessor_config.json`` or nothing.
    `known` holds the known values of tensors on the meta device; None for a model with weights.
    """

    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    model: Any
    parts: Parts
    known: KnownValues | None = field(default_factory=KnownValues)

    def with_weights(self, model: Any) -> FoundModel:
        """Return a copy for a model with weights, whose tensors hold their values themselves."""
        return replace(self, model=model, known=None)

    def knowing(self) -> AbstractContextManager[Any]:
        """Know the values of tensors on the meta device in a block."""
        return nullcontext() if self.known is None else self.known

    def place(self, value: torch.Tensor) -> torch.Tensor:
        """Move a tensor to the model's device; on the meta device, keep its values beside its shape."""
        made = value.to(self.model.device)
        if made.is_meta and self.known is not None:
            self.known.give(made, value)
        return made

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal configurations."""
        return stable_hash(dict(self.config))

    @cached_property
    def reads_pages(self) -> bool:
        """Whether the model takes pictures."""
        return bool(self.parts.vision) or image_features(self.model) is not None or self._encodes_pictures

    @property
    def encodes_text(self) -> bool:
        """Whether the encoder of an encoder-decoder also takes text."""
        encoder = self.parts.encoder
        return bool(encoder) and "input_ids" in parameters_of(self.model.get_submodule(encoder))

    @property
    def keeps_one_position(self) -> bool:
        """Whether an argument can limit the head to the last position of a prompt."""
        return KEPT in parameters_of(self.model)

    @property
    def _encodes_pictures(self) -> bool:
        return bool(self.parts.encoder) and not self.encodes_text

    def page(self, width: int, height: int, batch: int) -> Page:
        """Return the inputs that a batch of blank pages becomes."""
        return self._make_page(width, height, batch)

    @cached_property
    def _make_page(self) -> Callable[[int, int, int], Page]:
        # Each pass takes the same pages.
        return cache(partial(make_page, self.model.config, self.preprocessing))


def bare(found: FoundModel, page: Mapping[str, Any]) -> dict[str, Any]:
    """Return a page on the meta device with its values: some models find padded views by their pixels."""

    def shape_of(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return found.place(value.to(found.model.dtype) if value.is_floating_point() else value)

    made: dict[str, Any] = tree_map(shape_of, dict(page))
    return made


def page_of(found: FoundModel, workload: Workload) -> dict[str, Any]:
    """Return the pages of a batch as inputs, and the text by which the model chooses what it sees of them."""
    page = found.page(workload.image_width, workload.image_height, workload.batch_size)
    return {**bare(found, page.inputs), QUESTION: text_tokens(found, workload.batch_size, max(1, workload.text_tokens))}


def text_tokens(found: FoundModel, batch: int, tokens: int, image: int = 0) -> torch.Tensor:
    """Return token ids: one that begins the sequence, `image` placeholders of a page, then text."""
    if image > tokens:
        raise StagemeterError(f"seq_len: a prompt of {tokens:,} tokens has no room for a page of {image:,}. Give more")
    before = min(1, tokens - image)
    row = [_TEXT_TOKEN] * tokens
    row[before : before + image] = [_placeholder(found.model.config)] * image
    return _of_values(found, [row] * batch)


def token_types(found: FoundModel, batch: int, tokens: int, image: int) -> dict[str, torch.Tensor]:
    """Return which tokens stand for a page, under each argument name that models use."""
    before = min(1, tokens - image)
    row = [0] * before + [1] * image + [0] * (tokens - image - before)
    return dict.fromkeys(_TYPES, _of_values(found, [row] * batch))


def _of_values(found: FoundModel, rows: list[list[int]]) -> torch.Tensor:
    return found.place(torch.tensor(rows))


def _placeholder(config: Any) -> int:
    for name in _PLACEHOLDERS:
        if isinstance(token := getattr(config, name, None), int):
            return token
    return _TEXT_TOKEN
