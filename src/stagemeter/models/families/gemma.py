"""Gemma 1, 2 and 3, the language models: layers with a sliding window between those that attend to everything.

Gemma 2 caps its scores, for which torch has no fused operator: transformers runs two products with the scores
between them, and the count follows. Source: transformers, ``modeling_gemma.py``, ``modeling_gemma2.py``,
``modeling_gemma3.py``.
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter.models.builders.text import alike, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention, windows_by_layer
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    kind = settings.values["model_type"]
    settings.refuse("use_bidirectional_attention", True, "attention to later tokens is not part of this family")
    bias = settings.flag("attention_bias")
    attention = GroupedQueryAttention.read(settings, bias=bias, output_bias=bias)
    feed_forward = GatedFeedForward.read(settings)
    if kind == "gemma":
        return alike(settings, attention, feed_forward)
    attention = replace(
        attention,
        norms=2 * attention.head_width if kind == "gemma3_text" else 0,
        fused=kind == "gemma3_text",
    )
    layers = [
        Layer(replace(attention, window=window), feed_forward, 1, norms=4) for window in windows_by_layer(settings)
    ]
    return Decoder.read(settings, layers)


FAMILY = text_family(
    name="gemma",
    title="Gemma 1, 2 and 3, text alone: sliding windows, tied embedding",
    model_types=("gemma", "gemma2", "gemma3_text"),
    read=_read,
    shipped=("gemma-2-9b", "gemma-3-1b"),
)
