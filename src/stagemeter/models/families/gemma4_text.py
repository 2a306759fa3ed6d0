"""Gemma 4's language models: windows, embeddings for each layer, last layers that share keys and values.

Layers that share keys and values need only a prompt's last token, and transformers runs them on no other.
Source: transformers, ``modeling_gemma4.py``, ``configuration_gemma4.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.builders.text import text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, ExpertsBeside, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention, windows_by_layer
from stagemeter.models.decoder.per_layer_embeddings import PerLayerEmbedding, PerLayerInput
from stagemeter.models.family import Note
from stagemeter.models.settings import Settings

#: Norms of a layer as wide as the model; one with experts has three more.
_NORMS, _MORE_NORMS = 4, 3
#: Settings that single layers may override.
_OF_A_LAYER = ("head_dim", "num_key_value_heads")


def _read(settings: Settings) -> Decoder:
    settings.refuse("use_bidirectional_attention", "all", "attention to later tokens is not part of this family")
    windows = windows_by_layer(settings)
    first_shared = len(windows) - _shared_layers(settings, windows)
    width = settings.whole("hidden_size_per_layer_input", least=0)
    if first_shared < len(windows) and not width:
        raise StagemeterError(
            f"{settings.source}: num_kv_shared_layers is {len(windows) - first_shared}, which transformers runs with "
            "embeddings for each layer alone, but hidden_size_per_layer_input is 0. Change one of them"
        )
    made = Decoder.read(
        settings,
        [
            Layer(
                _attention(settings, index, window, index >= first_shared),
                _feed_forward(settings, index >= first_shared),
                times=1,
                norms=_NORMS + _MORE_NORMS * settings.flag("enable_moe_block"),
                # A factor of the layer's result.
                numbers=1,
                per_layer_input=PerLayerInput(width) if width else None,
            )
            for index, window in enumerate(windows)
        ],
    )
    vocabulary = settings.whole("vocab_size_per_layer_input")
    return replace(made, per_layer_embedding=PerLayerEmbedding(len(windows), width, vocabulary) if width else None)


def _shared_layers(settings: Settings, windows: list[int]) -> int:
    """Return how many last layers take keys and values of an earlier layer of their kind."""
    shared = settings.whole("num_kv_shared_layers", least=0)
    own, sharing = windows[: len(windows) - shared], windows[len(windows) - shared :]
    if shared >= len(windows) or {*map(bool, sharing)} - {*map(bool, own)}:
        raise StagemeterError(
            f"{settings.source}: num_kv_shared_layers is {shared} of {len(windows)} layers. Leave an earlier layer of "
            "each kind, which makes keys and values"
        )
    return shared


def _attention(settings: Settings, index: int, window: int, shared: bool) -> GroupedQueryAttention:
    keys_are_values = settings.flag("attention_k_eq_v") and not window
    sizes = Settings({**settings.values, **_of_layer(settings, index)}, settings.source)
    bias = settings.flag("attention_bias")
    return GroupedQueryAttention.read(
        sizes,
        bias=bias,
        output_bias=bias,
        # Of queries, and of keys where they are made.
        norms=(1 if shared else 2) * sizes.whole("head_dim"),
        window=window,
        keys_are_values=keys_are_values,
        shared=shared,
    )


def _of_layer(settings: Settings, index: int) -> Mapping[str, Any]:
    """Return the sizes of a layer that differ from those of the others."""
    sizes: Mapping[str, Any] = settings.values["per_layer_config"].get(str(index), {})
    other = next((key for key in sizes if key not in _OF_A_LAYER), None)
    if other is not None:
        raise StagemeterError(
            f"{settings.source}: per_layer_config gives layer {index} its own {other}, which is not counted. "
            f"A layer may change {' and '.join(_OF_A_LAYER)}"
        )
    return sizes


def _feed_forward(settings: Settings, shared: bool) -> GatedFeedForward | ExpertsBeside:
    dense = GatedFeedForward.read(settings)
    if shared and settings.flag("use_double_wide_mlp"):
        dense = replace(dense, intermediate=2 * dense.intermediate)
    if not settings.flag("enable_moe_block"):
        return dense
    if settings.values.get("num_kv_shared_layers"):
        raise StagemeterError(
            f"{settings.source}: num_kv_shared_layers is {settings.values['num_kv_shared_layers']} in a model with "
            "experts, which is not part of this family. Leave one of them out"
        )
    routed = Experts.read(settings, "num_experts", "moe_intermediate_size", chosen="top_k_experts", module="")
    return ExpertsBeside(dense, routed)


SHARED_NOTE = Note(
    "layers that share the keys and values of an earlier layer run only on the last token of a prompt, as transformers "
    "runs them when it generates",
    applies=lambda decoder, workload: any(layer.attention.last_token_only for layer in decoder.layers),
)

FAMILY = text_family(
    name="gemma4-text",
    title="Gemma 4, text alone: windows, embeddings for each layer, shared keys and values",
    model_types=("gemma4_text",),
    read=_read,
    notes=(SHARED_NOTE,),
)
