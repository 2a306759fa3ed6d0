"""MiniMax-01: lightning attention in most layers, softmax attention in the others, mixture of experts in every layer.

Source: transformers, ``modeling_minimax.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import FULL, decoder, experts, grouped_query_attention, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.lightning import LightningAttention
from stagemeter.models.decoder.stages import OF_BLOCKS
from stagemeter.models.settings import Settings

_LINEAR = "linear_attention"


def _read(settings: Settings) -> Decoder:
    kinds = settings.kinds("layer_types", (FULL, _LINEAR))
    # A window masks what softmax attention computes, and what its cache keeps (`MiniMaxCache`) is everything.
    settings.whole("sliding_window", 0)
    attention = grouped_query_attention(settings, window=0)
    lightning = LightningAttention(attention.heads, attention.head_width, settings.whole("block_size"))
    routed = experts(settings, "num_local_experts", "intermediate_size")
    return decoder(settings, [Layer(lightning if kind == _LINEAR else attention, routed, 1) for kind in kinds])


FAMILY = text_family(
    name="minimax-01",
    title="MiniMax-01: lightning attention, softmax attention in every eighth layer, mixture of experts",
    model_types=("minimax",),
    read=_read,
    prefill_variables=OF_BLOCKS,
    shipped={"minimax-01": "minimax_01.json"},
    notes=(
        "lightning attention is counted as transformers runs it: a prompt in blocks, scores of a block in full and its "
        "state by products; a new token by an outer product and a product with the state; scaling by decays is "
        "elementwise, which is zero by convention",
    ),
)
