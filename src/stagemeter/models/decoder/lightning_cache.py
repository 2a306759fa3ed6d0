"""The cache of lightning attention, which tells a recorder what it holds and what is appended."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from stagemeter.models.family import CacheRecorder


class RecordedLightningCache(MiniMaxCache):
    """transformers' cache for lightning attention, with a recorder of every update."""

    def __init__(self, recorder: CacheRecorder) -> None:
        untyped: Any = super()
        untyped.__init__()
        self.recorder = recorder

    def fill(self, *held: torch.Tensor, layer_idx: int) -> None:
        """Put in what earlier passes left of a layer, keys and values or a state, without telling the recorder."""
        untyped: Any = super()
        if len(held) == 1:
            untyped.set_linear_cache(layer_idx, held[0])
        else:
            untyped.update(*held, layer_idx)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens, and return all of them."""
        key, value = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.recorder.record_cache_update(key, value, added=key_states.numel() + value_states.numel())
        return key, value

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        """Keep the state of linear attention; all of it is written."""
        untyped: Any = super()
        untyped.set_linear_cache(layer_idx, linear_cache)
        self.recorder.record_cache_update(linear_cache, linear_cache, added=linear_cache.numel())
