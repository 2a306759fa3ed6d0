"""Mistral and Mixtral. Source: transformers, ``modeling_mistral.py``, ``modeling_mixtral.py``."""

from __future__ import annotations

from stagemeter.models.builders.text import alike, text_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    attention = GroupedQueryAttention.read(settings, window=settings.whole("sliding_window", 0))
    if settings.values["model_type"] == "mistral":
        return alike(settings, attention, GatedFeedForward.read(settings))
    return alike(settings, attention, Experts.read(settings, "num_local_experts", "intermediate_size"))


FAMILY = text_family(
    name="mixtral",
    title="Mistral and Mixtral: grouped-query attention, dense or mixture of experts",
    model_types=("mistral", "mixtral"),
    read=_read,
    shipped=("mistral-7b-v0.1", "mixtral-8x7b"),
)
