"""A KV cache that tells a recorder what it holds and what is appended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from stagemeter.models.family import CacheRecorder

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class RecordedCache(DynamicCache):
    """transformers' growing cache with a recorder of updates; without `config`, every layer keeps everything."""

    def __init__(self, recorder: CacheRecorder, config: PretrainedConfig | None = None) -> None:
        super().__init__(config=config)
        self.recorder = recorder

    def fill(self, *held: torch.Tensor, layer_idx: int) -> None:
        """Put in what earlier passes left of a layer, keys and values or states, without telling the recorder."""
        if layer_idx < len(self.layers) and isinstance(self.layers[layer_idx], LinearAttentionCacheLayerMixin):
            inputs, recurrent = held[-2:]
            held = held[:-2]
            super().update_conv_state(inputs, layer_idx, conv_kernel_size=inputs.shape[-1])
            super().update_recurrent_state(recurrent, layer_idx)
            layer: Any = self.layers[layer_idx]
            for state in (layer.conv_states[0], layer.recurrent_states[0]):
                self.recorder.record_state(state, added=0)
        if held:
            key, value, *indexer_keys = held
            super().update(key, value, layer_idx)
            for keys in indexer_keys:
                super().update_indexer(keys, layer_idx)

    def keep(self, *held: torch.Tensor, layer_idx: int) -> None:
        """Put in what a layer reads in every pass and never appends to, and tell the recorder."""
        self.fill(*held, layer_idx=layer_idx)
        layer: Any = self.layers[layer_idx]
        self.recorder.record_cache_update(layer.keys, layer.values, added=0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens, and return all of them."""
        key, value = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.recorder.record_cache_update(key, value, added=key_states.numel() + value_states.numel())
        return key, value

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Keep the last inputs of a convolution over tokens, and return all of them."""
        layer: Any = self.layers[layer_idx]
        first = not layer.is_conv_states_initialized[state_idx]
        inputs: torch.Tensor = super().update_conv_state(conv_states, layer_idx, state_idx, **kwargs)
        if first:
            self._keeps(layer.conv_states[state_idx])
        return inputs

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Keep the state of a recurrence or of linear attention; all of it is written."""
        layer: Any = self.layers[layer_idx]
        first = not layer.is_recurrent_states_initialized[state_idx]
        state: torch.Tensor = super().update_recurrent_state(recurrent_states, layer_idx, state_idx, **kwargs)
        if first:
            self._keeps(state)
        return state

    def update_indexer(self, indexer_key_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Append the keys that sparse attention chooses tokens by."""
        keys = super().update_indexer(indexer_key_states, *args, **kwargs)
        self.recorder.record_cache_update(keys, keys, added=indexer_key_states.numel())
        return keys

    def _keeps(self, state: torch.Tensor) -> None:
        # The first update makes and fills the state; the recorder itself sees later copies into it.
        self.recorder.record_state(state, added=state.numel())


def recorded(cache: DynamicCache, recorder: CacheRecorder) -> DynamicCache:
    """Make a cache of another class tell a recorder of later keys and values."""
    update = type(cache).update

    def record(key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        key, value = update(cache, key_states, value_states, *args, **kwargs)
        recorder.record_cache_update(key, value, added=key_states.numel() + value_states.numel())
        return key, value

    vars(cache)["update"] = record
    return cache
