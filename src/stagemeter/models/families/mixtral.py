"""Mistral and Mixtral: grouped-query attention, with a sliding window in early models; dense or eight experts.

Source: transformers, ``modeling_mistral.py``, ``modeling_mixtral.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import decoder, experts, gated, grouped_query_attention, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    window = settings.whole("sliding_window", 0)
    attention = grouped_query_attention(settings, window=window)
    routes = settings.values["model_type"] == "mixtral"
    feed_forward = experts(settings, "num_local_experts", "intermediate_size") if routes else gated(settings)
    return decoder(settings, [Layer(attention, feed_forward, settings.whole("num_hidden_layers"))])


FAMILY = text_family(
    name="mixtral",
    title="Mistral and Mixtral: grouped-query attention, dense or mixture of experts",
    model_types=("mistral", "mixtral"),
    read=_read,
    shipped={"mistral-7b-v0.1": "mistral_7b_v0_1.json", "mixtral-8x7b": "mixtral_8x7b.json"},
)
