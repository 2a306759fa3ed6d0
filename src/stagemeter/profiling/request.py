"""Requests that really run: the calls that a family's own passes make, with values in place of zeros."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.family import Family, Runner

if TYPE_CHECKING:
    import torch

#: Names of a model's arguments for token ids, and for the cache.
_TOKENS = ("decoder_input_ids", "input_ids")
_CACHES = ("past_key_values", "cache_params")
#: Settings that hold token ids with a meaning of their own, and those whose tokens stand for a picture or mark one.
_SPECIAL = re.compile(r"_(token|patch)_(id|ids|index)$")
_OF_PICTURES = re.compile(r"(image|video|vision|media|boi|eoi)\w*_(id|index)$")
#: Settings that name the token of a picture, the first one that is there counts.
_PLACEHOLDERS = ("image_token_id", "image_token_index", "media_placeholder_token_id", "image_patch_id")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a module with keyword arguments."""

    module: Any
    arguments: dict[str, Any]

    @property
    def tokens(self) -> str:
        """Name of the argument that holds the decoder's token ids."""
        return next(name for name in _TOKENS if name in self.arguments)

    @property
    def cache(self) -> str:
        """Name of the argument that holds the cache."""
        return next(name for name in _CACHES if name in self.arguments)


@dataclass(frozen=True, slots=True)
class Request:
    """The calls of one request. The cache fills as it runs, so a request runs once.

    `prefill` takes pages and prompt, with an empty cache. Of the arguments of `step`, token ids, positions, cache and
    encoder's output are those of the request as it runs.
    """

    prefill: Call
    step: Call
    prompt_tokens: int
    new_tokens: int

    @property
    def pixels(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the pixels of the pages, by argument."""
        return {
            name: tuple(value.shape)
            for name, value in self.prefill.arguments.items()
            if name.startswith("pixel_values") and hasattr(value, "shape")
        }


def make_request(
    model: Any,
    family: Family[Any],
    architecture: Any,
    workload: Workload,
    page: Mapping[str, torch.Tensor] | None = None,
) -> Request:
    """Make a request of the shapes of a workload, the same values every time.

    Token ids of text differ from one another, since equal tokens choose equal experts. `page` holds pixels of a picture
    by argument; without it, pixels are random numbers.
    """
    import torch

    # Before the passes, since this can change the tokens of pictures that they look for.
    words, of_pictures = _tokens_of(model)
    # With an empty cache, since a request brings its own.
    first = replace(workload, decode_context=1)
    prefill = _first_call(model, architecture, workload, family.whole_passes["forward"])
    step = _first_call(model, architecture, first, family.whole_passes["decode"])
    generator = torch.Generator().manual_seed(0)
    # The passes of a model without closed forms place the page themselves.
    in_prompt = family.has_closed_forms and family.page_in_prompt(architecture)
    for name, value in prefill.arguments.items():
        if name in _CACHES:
            continue
        if name in _TOKENS:
            pages = workload.all_image_tokens if in_prompt and name == "input_ids" else 0
            prefill.arguments[name] = _varied_text(words, of_pictures, value, pages, generator)
        elif page is not None and name in page:
            prefill.arguments[name] = page[name].to(value)
        else:
            prefill.arguments[name] = _with_values(name, value, generator)
    for name, value in step.arguments.items():
        if "mask" in name:
            step.arguments[name] = _with_values(name, value, generator)
    return Request(prefill, step, workload.prompt_tokens, workload.new_tokens)


class _ReachedError(Exception):
    """A pass has called its model."""


class _NoRecorder:
    """A recorder of caches that records nothing, and knows whether calls prepare a pass and are no part of it."""

    is_paused = False

    def record_cache_update(self, key: Any, value: Any, added: int) -> None: ...

    def record_state(self, state: Any, added: int) -> None: ...

    def known_values(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before


def _first_call(model: Any, architecture: Any, workload: Workload, run: Runner) -> Call:
    """Return the first call that a pass makes, without running it."""
    recorder, found = _NoRecorder(), []

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not recorder.is_paused:
            found.append(Call(module, dict(kwargs)))
            raise _ReachedError

    import torch

    with torch.no_grad(), ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(stop, with_kwargs=True).remove)
        try:
            run(model, architecture, workload, recorder)
        except _ReachedError:
            return found[0]
    raise StagemeterError(f"{type(model).__name__}: its pass calls no module. Profile another model")


def _with_values(name: str, value: Any, generator: torch.Generator) -> Any:
    """Put numbers in place of tensors of one value: ones into masks, random ones into pixels."""
    import torch
    from torch.utils._pytree import tree_map

    def fill(item: Any) -> Any:
        if not isinstance(item, torch.Tensor) or not item.is_floating_point() or item.numel() < 1:
            return item
        if "mask" in name:
            return torch.ones_like(item)
        if item.min() != item.max():
            return item
        return torch.randn(item.shape, generator=generator).to(item)

    return tree_map(fill, value)


def _tokens_of(model: Any) -> tuple[list[int], dict[str, int]]:
    """Return the words of a model, and its tokens of pictures by the setting that names them.

    A token of pictures that the embedding lacks becomes a word, also for the model: a reduced vocabulary lacks the
    published token, and so does the published configuration of Florence-2.
    """
    settings = dict(_token_settings(model.config.to_dict()))
    special = {token for tokens in settings.values() for token in tokens}
    words = [token for token in range(model.config.get_text_config(decoder=True).vocab_size) if token not in special]
    of_pictures = {name: tokens[0] for name, tokens in settings.items() if _OF_PICTURES.search(name)}
    for name, token in of_pictures.items():
        if token >= model.get_input_embeddings().num_embeddings and hasattr(model.config, name) and len(words) > 1:
            of_pictures[name] = words.pop()
            setattr(model.config, name, of_pictures[name])
    return words or [0], of_pictures


def _varied_text(
    words: list[int], of_pictures: dict[str, int], ids: torch.Tensor, pages: int, generator: torch.Generator
) -> torch.Tensor:
    """Put another word at every place of text, and the page's own tokens where the pass left them out."""
    import torch

    places = torch.isin(ids.cpu(), torch.tensor(sorted(of_pictures.values()), dtype=torch.long))
    chosen = torch.tensor(words)[torch.randint(len(words), ids.shape, generator=generator)]
    varied = torch.where(places, ids.cpu(), chosen)
    if pages and not places.any():
        token = next((of_pictures[name] for name in _PLACEHOLDERS if name in of_pictures), None)
        if token is None:
            raise StagemeterError(f"config.json: no token stands for a picture. Give one of {', '.join(_PLACEHOLDERS)}")
        # The token that begins the sequence comes before the page.
        start = min(1, ids.shape[1] - pages)
        varied[:, start : start + pages] = token
    return varied.to(ids.device)


def _token_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Yield the settings that hold token ids: those of parts first, so that the whole model's override them."""
    for value in settings.values():
        if isinstance(value, Mapping):
            yield from _token_settings(value)
    for name, value in settings.items():
        tokens = value if isinstance(value, list) else [value]
        if _SPECIAL.search(str(name)) and tokens and all(type(token) is int for token in tokens):
            yield name, tokens
