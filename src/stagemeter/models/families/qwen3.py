"""Qwen 2, 2.5 and 3, dense and mixtures of experts.

Qwen 2 adds biases to queries, keys and values; Qwen 3 norms queries and keys instead. Source: transformers,
``modeling_qwen2.py``, ``modeling_qwen2_moe.py``, ``modeling_qwen3.py``, ``modeling_qwen3_moe.py``.
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter.models.builders.text import sparse_layers, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention, windows_by_layer
from stagemeter.models.settings import Settings

#: The setting for the number of experts, by type.
_EXPERTS = {"qwen2_moe": "num_experts", "qwen3_moe": "num_local_experts"}


def _read(settings: Settings) -> Decoder:
    attention = _attention(settings)
    # Without kinds of layers, as in mixtures of experts, a window holds for every layer.
    windows = [attention.window] * settings.whole("num_hidden_layers")
    if settings.values.get("layer_types") is not None:
        windows = windows_by_layer(settings)
    kinds = [replace(attention, window=window) for window in windows]
    dense = GatedFeedForward.read(settings)
    number = _EXPERTS.get(settings.values["model_type"])
    if number is None:
        return Decoder.read(settings, [Layer(kind, dense, 1) for kind in kinds])
    routed = Experts.read(settings, number, "moe_intermediate_size")
    if settings.values["model_type"] == "qwen2_moe":
        shared = settings.whole("shared_expert_intermediate_size")
        routed = replace(routed, shared_intermediate=shared, shared_gate=True)
    feed_forward = [routed if sparse else dense for sparse in sparse_layers(settings)]
    return Decoder.read(settings, [Layer(*parts, 1) for parts in zip(kinds, feed_forward, strict=True)])


def _attention(settings: Settings) -> GroupedQueryAttention:
    if settings.values["model_type"] == "qwen2":
        return GroupedQueryAttention.read(settings, bias=True)
    if settings.values["model_type"] == "qwen2_moe":
        return GroupedQueryAttention.read(settings, bias=settings.flag("qkv_bias"))
    bias = settings.flag("attention_bias")
    attention = GroupedQueryAttention.read(settings, bias=bias, output_bias=bias)
    return replace(attention, norms=2 * attention.head_width)


FAMILY = text_family(
    name="qwen3",
    title="Qwen 2, 2.5 and 3: grouped-query attention, dense or mixture of experts",
    model_types=("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    read=_read,
    shipped=("qwen2.5-7b", "qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b"),
)
