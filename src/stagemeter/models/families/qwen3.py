"""Qwen 2, 2.5 and 3, dense and mixtures of experts.

Qwen 2 adds biases to queries, keys and values; Qwen 3 norms queries and keys instead. Source: transformers,
``modeling_qwen2.py``, ``modeling_qwen3.py``, ``modeling_qwen3_moe.py``.
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter.models.builders.text import (
    decoder,
    experts,
    gated,
    grouped_query_attention,
    text_family,
    windows_by_layer,
)
from stagemeter.models.decoder.attention import GroupedQueryAttention
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    attention = _attention(settings)
    layers = settings.whole("num_hidden_layers")
    # Without kinds of layers, as in mixtures of experts, a window is that of every layer.
    windows = [attention.window] * layers
    if settings.values.get("layer_types") is not None:
        windows = windows_by_layer(settings)
    kinds = [replace(attention, window=window) for window in windows]
    if settings.values["model_type"] != "qwen3_moe":
        return decoder(settings, [Layer(kind, gated(settings), 1) for kind in kinds])
    routed = experts(settings, "num_local_experts", "moe_intermediate_size")
    step, dense = settings.whole("decoder_sparse_step"), settings.indices("mlp_only_layers")
    return decoder(
        settings,
        [
            Layer(kind, routed if index not in dense and (index + 1) % step == 0 else gated(settings), times=1)
            for index, kind in enumerate(kinds)
        ],
    )


def _attention(settings: Settings) -> GroupedQueryAttention:
    if settings.values["model_type"] == "qwen2":
        return grouped_query_attention(settings, bias=True)
    bias = settings.flag("attention_bias")
    attention = grouped_query_attention(settings, bias=bias, output_bias=bias)
    return replace(attention, norms=2 * attention.head_width)


FAMILY = text_family(
    name="qwen3",
    title="Qwen 2, 2.5 and 3: grouped-query attention, dense or mixture of experts",
    model_types=("qwen2", "qwen3", "qwen3_moe"),
    read=_read,
    shipped={
        "qwen2.5-7b": "qwen2_5_7b.json",
        "qwen3-0.6b": "qwen3_0_6b.json",
        "qwen3-8b": "qwen3_8b.json",
        "qwen3-30b-a3b": "qwen3_30b_a3b.json",
    },
)
