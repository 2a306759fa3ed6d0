"""Caches of models without a family."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_flatten
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from stagemeter.core.errors import StagemeterError
from stagemeter.models.decoder.kv_cache import RecordedCache, recorded
from stagemeter.models.family import CacheRecorder
from stagemeter.models.generic import AS_MODULE
from stagemeter.models.generic.parts import parameters_of


def cache_name(model: Any) -> str:
    """Return the argument by which a model takes a cache, or raise StagemeterError if it takes none."""
    for module in (model, model.get_decoder()):
        parameters = parameters_of(module)
        for name in ("past_key_values", "cache_params"):
            if name in parameters:
                return name
    raise StagemeterError(
        f"model: {type(model).__name__} takes no cache, so every new token runs all that came before again. {AS_MODULE}"
    )


def new_cache(model: Any, recorder: CacheRecorder) -> Any:
    """Return an empty cache of the kind that ``generate`` makes for a model."""
    from transformers import EncoderDecoderCache

    text = model.config.get_text_config(decoder=True)
    kind = own_cache(model)
    if kind is not None:
        return recorded(kind(), recorder)
    if model.config.is_encoder_decoder:
        # Windows limit the decoder's own tokens, not the encoder's output.
        return EncoderDecoderCache(RecordedCache(recorder, text), RecordedCache(recorder))
    return RecordedCache(recorder, text)


def own_cache(model: Any) -> Any:
    """Return the class of a model's own cache, None for transformers' usual one; refuse an unknown class."""
    if model._supports_default_dynamic_cache():
        return None
    found = [
        kind
        for name, kind in vars(sys.modules[type(model).__module__]).items()
        if isinstance(kind, type) and issubclass(kind, DynamicCache) and kind.__module__ == type(model).__module__
    ]
    if len(found) != 1:
        raise StagemeterError(f"model: {type(model).__name__} keeps a cache of its own kind. {AS_MODULE}")
    return found[0]


def keeps_states(model: Any) -> bool:
    """Return whether some layers keep the state of a recurrence instead of keys and values."""
    return any(
        isinstance(layer, LinearAttentionCacheLayerMixin)
        for part in parts_of_cache(new_cache(model, Silent()))
        for layer in part.layers
    )


def require_kept(model: Any, cache: Any) -> None:
    """Refuse a model that keeps nothing in its cache: a decode step would attend only to itself."""
    if not any(tensor.numel() for tensor in tensors_of_cache(cache)):
        raise StagemeterError(
            f"model: {type(model).__name__} keeps nothing of what came before, and runs it all again. {AS_MODULE}"
        )


def parts_of_cache(cache: Any) -> list[Any]:
    """Return the parts of a cache: an encoder-decoder's has one for its own tokens and one for the encoder's."""
    return [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "is_updated") else [cache]


def tensors_of_cache(cache: Any) -> list[torch.Tensor]:
    """Return the tensors that a cache holds."""
    held = [[list(vars(layer).values()) for layer in part.layers] for part in parts_of_cache(cache)]
    # Models' own caches also keep tensors outside of the layers.
    held += [[value for name, value in vars(part).items() if name != "layers"] for part in parts_of_cache(cache)]
    # Tensors of whole numbers count tokens.
    tensors = (item for item in tree_flatten(held)[0] if isinstance(item, torch.Tensor))
    return [tensor for tensor in tensors if tensor.is_floating_point()]


class Silent:
    """A recorder that records nothing."""

    def record_cache_update(self, key: Any, value: Any, added: int) -> None:
        """Record nothing."""

    def record_state(self, state: Any, added: int) -> None:
        """Record nothing."""

    def paused(self) -> AbstractContextManager[None]:
        """Record nothing in the block."""
        return nullcontext()

    def known_values(self) -> AbstractContextManager[Any]:
        """Change nothing in the block: values are known already."""
        return self.paused()
