"""MiniMax-M2: norms over the queries and keys of all heads. Source: transformers, ``modeling_minimax_m2.py``."""

from __future__ import annotations

from dataclasses import replace

from stagemeter.models.builders.text import alike, text_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.feed_forward import Experts
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    settings.refuse("use_qk_norm", False, "queries and keys of MiniMax-M2 are normed")
    plain = GroupedQueryAttention.read(settings)
    attention = replace(plain, norms=(plain.heads + plain.key_value_heads) * plain.head_width)
    routed = Experts.read(settings, "num_local_experts", "intermediate_size", choice_bias=True)
    return alike(settings, attention, routed)


FAMILY = text_family(
    name="minimax-m2",
    title="MiniMax-M2: grouped-query attention, mixture of experts",
    model_types=("minimax_m2",),
    read=_read,
    shipped=("minimax-m2",),
    notes=(
        "layers for predicting several tokens at once, which the configuration names, are left out; the published "
        "checkpoint holds none of their weights",
    ),
)
