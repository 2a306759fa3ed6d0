"""MiniMax-M2: grouped-query attention with norms over all heads, mixture of experts in every layer.

Source: transformers, ``modeling_minimax_m2.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import decoder, experts, grouped_query_attention, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    settings.refuse("use_qk_norm", False, "queries and keys of MiniMax-M2 are normed")
    plain = grouped_query_attention(settings)
    norms = (plain.heads + plain.key_value_heads) * plain.head_width
    attention = grouped_query_attention(settings, norms=norms)
    routed = experts(settings, "num_local_experts", "intermediate_size", choice_bias=True)
    return decoder(settings, [Layer(attention, routed, settings.whole("num_hidden_layers"))])


FAMILY = text_family(
    name="minimax-m2",
    title="MiniMax-M2: grouped-query attention, mixture of experts",
    model_types=("minimax_m2",),
    read=_read,
    shipped={"minimax-m2": "minimax_m2.json"},
    notes=("layers for predicting several tokens at once, which a checkpoint may hold beside the model, are left out",),
)
