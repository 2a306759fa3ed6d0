"""GPT-OSS: sliding windows in every second layer, attention with sinks, biases everywhere, mixture of experts.

A sink is a number per head that takes part in the softmax and in no product. torch has no fused operator for it:
transformers runs two products with the scores between them, and the count follows. Source: transformers,
``modeling_gpt_oss.py``.
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter.models.builders.text import text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention, windows_by_layer
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    bias, sinks = settings.flag("attention_bias"), settings.whole("num_attention_heads")
    attention = GroupedQueryAttention.read(settings, bias=bias, output_bias=bias, sinks=sinks, fused=False)
    routed = Experts.read(settings, "num_local_experts", "intermediate_size", bias=True)
    windows = windows_by_layer(settings)
    return Decoder.read(settings, [Layer(replace(attention, window=window), routed, 1) for window in windows])


FAMILY = text_family(
    name="gpt-oss",
    title="GPT-OSS: sliding windows, attention sinks, mixture of experts",
    model_types=("gpt_oss",),
    read=_read,
    shipped=("gpt-oss-20b", "gpt-oss-120b"),
)
