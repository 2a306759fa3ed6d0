"""Llama 2 and 3, and what is built alike: grouped-query attention and a gated feed-forward network.

Source: transformers, ``modeling_llama.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import decoder, grouped_query_attention, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    bias = settings.flag("attention_bias")
    attention = grouped_query_attention(settings, bias=bias, output_bias=bias)
    feed_forward = GatedFeedForward(settings.whole("intermediate_size"), bias=settings.flag("mlp_bias"))
    return decoder(settings, [Layer(attention, feed_forward, settings.whole("num_hidden_layers"))])


FAMILY = text_family(
    name="llama",
    title="Llama 2 and 3: grouped-query attention, gated feed-forward",
    model_types=("llama",),
    read=_read,
    shipped={"llama-3.1-8b": "llama_3_1_8b.json", "llama-3.1-70b": "llama_3_1_70b.json"},
)
