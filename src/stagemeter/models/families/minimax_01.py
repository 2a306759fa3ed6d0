"""MiniMax-01: lightning attention in most layers. Source: transformers, ``modeling_minimax.py``."""

from __future__ import annotations

from stagemeter.models.builders.text import text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts
from stagemeter.models.decoder.grouped_query import FULL, GroupedQueryAttention
from stagemeter.models.decoder.lightning import LightningAttention
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    # The cache (`MiniMaxCache`) keeps everything.
    window = settings.whole("sliding_window", 0)
    softmax = GroupedQueryAttention.read(settings, window=0, mask_window=window)
    lightning = LightningAttention.read(settings)
    routed = Experts.read(settings, "num_local_experts", "intermediate_size")
    kinds = settings.kinds("layer_types", (FULL, lightning.layer_type))
    return Decoder.read(settings, [Layer(softmax if kind == FULL else lightning, routed, 1) for kind in kinds])


FAMILY = text_family(
    name="minimax-01",
    title="MiniMax-01: lightning attention, softmax attention in every eighth layer, mixture of experts",
    model_types=("minimax",),
    read=_read,
    prefill_variables=LightningAttention.PREFILL_VARIABLES,
    shipped=("minimax-01",),
    notes=(
        "lightning attention needs the products of its recurrence for each token; transformers executes a prompt in "
        "blocks, with scores of a block in full; scaling by decays is elementwise, which is zero by convention",
    ),
)
