"""Llama 2 and 3. Source: transformers, ``modeling_llama.py``."""

from __future__ import annotations

from stagemeter.models.builders.text import alike, text_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    bias = settings.flag("attention_bias")
    attention = GroupedQueryAttention.read(settings, bias=bias, output_bias=bias)
    return alike(settings, attention, GatedFeedForward.read(settings, bias=settings.flag("mlp_bias")))


FAMILY = text_family(
    name="llama",
    title="Llama 2 and 3: grouped-query attention, gated feed-forward",
    model_types=("llama",),
    read=_read,
    shipped=("llama-3.1-8b", "llama-3.1-70b"),
)
