"""Passes of a model over new tokens after cached ones, for counting by running."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.grouped_query import FULL, SLIDING
from stagemeter.models.decoder.mixer import Held, Mixer
from stagemeter.models.family import CacheRecorder

if TYPE_CHECKING:
    import torch


def whole_pass(
    model: Any,
    decoder: Decoder,
    workload: Workload,
    tokens: int,
    cached: int,
    recorder: CacheRecorder,
    page: Mapping[str, Any] | None = None,
    keeps_everything: bool = False,
) -> None:
    """Run one pass of a whole model as ``generate`` does: token ids in, the output head on the last position.

    `tokens` are new ones per sequence, `cached` those of earlier passes. `page` holds pixels and other inputs by name,
    with token ids if their values matter. For `keeps_everything`, see `decoder_stages`.
    """
    import torch

    ids = torch.zeros(workload.batch_size, tokens, dtype=torch.long, device=model.device)
    passed = cache_arguments(model, decoder, workload, tokens, cached, recorder, keeps_everything)
    model(logits_to_keep=1, **{"input_ids": ids, **(page or {})}, **passed)


def cache_arguments(
    model: Any,
    decoder: Decoder,
    workload: Workload,
    tokens: int,
    cached: int,
    recorder: CacheRecorder,
    keeps_everything: bool = False,
) -> dict[str, Any]:
    """Make the positions of a decoder's pass, and a cache that holds what earlier passes left."""
    import torch

    from stagemeter.models.decoder.kv_cache import RecordedCache

    wrong = next((layer.attention.UNRESUMABLE for layer in decoder.layers if layer.attention.UNRESUMABLE), "")
    if wrong and cached and tokens > 1:
        raise StagemeterError(f"cached_tokens, chunk_tokens: {wrong}. Take the closed forms alone, by --estimate")
    settings = model.config.get_text_config(decoder=True)
    # Layers that keep something come first.
    keeping = [layer for layer in decoder.layers if not layer.attention.last_token_only]
    caches = [cache for layer in keeping if (cache := layer.attention.own_cache(recorder)) is not None]
    cache = caches[0] if caches else RecordedCache(recorder, None if keeps_everything else settings)
    prompt = min(cached, workload.prompt_tokens)
    by_type = {layer.attention.layer_type: layer.attention for layer in keeping}
    encoder_tokens = decoder.encoder_tokens(workload)

    def zeros(mixer: Mixer, tokens: int) -> list[torch.Tensor]:
        held = Held(workload.batch_size, tokens, encoder_tokens)
        return [empty(model, *shape) for shape in mixer.cached_shapes(decoder.hidden, held)]

    for index in range(sum(layer.times for layer in keeping) if cached else 0):
        mixer = by_type[_layer_type(settings, index, by_type)]
        mixer.fill_cache(cache, index, partial(zeros, mixer), prompt, cached)
    positions = torch.arange(cached, cached + tokens, device=model.device)
    # Models that keep only states name the argument differently.
    name = "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"
    return {"position_ids": positions.expand(workload.batch_size, tokens), name: cache, "use_cache": True}


def _layer_type(settings: Any, index: int, known: Mapping[str, Any]) -> str:
    if len(known) == 1:
        return next(iter(known))
    if index in (getattr(settings, "cross_attention_layers", None) or ()):
        return "cross_attention"
    types = getattr(settings, "layer_types", None) or getattr(settings, "layers_block_type", None)
    named: str = types[index] if types else FULL
    # Some configurations name windows differently, such as chunks.
    return named if named in known else SLIDING


def empty(model: Any, *shape: int) -> torch.Tensor:
    """Return zeros of a model's data type on its device."""
    import torch

    return torch.zeros(shape, dtype=model.dtype, device=model.device)
