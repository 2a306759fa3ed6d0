"""Llama 4's language models: chunked attention in most layers, mixtures of experts with a shared one.

Source: transformers, ``modeling_llama4.py``, ``configuration_llama4.py``.
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter.models.builders.text import text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import FULL, GroupedQueryAttention
from stagemeter.models.family import Note
from stagemeter.models.settings import Settings

_CHUNKED, _MODULE, _WIDTH = "chunked_attention", "feed_forward", "intermediate_size"


def _read(settings: Settings) -> Decoder:
    bias = settings.flag("attention_bias")
    full = GroupedQueryAttention.read(settings, bias=bias, output_bias=bias, window=0)
    # A step computes scores for as many tokens as a chunk has, and masks those of the chunk before. Null: no chunks.
    chunked = replace(full, window=settings.whole("attention_chunk_size", 0), chunked=True)
    shared = settings.whole(_WIDTH)
    routed = Experts.read(
        settings, "num_local_experts", _WIDTH, shared_intermediate=shared, every_one=True, module=_MODULE
    )
    dense = GatedFeedForward.read(settings, "intermediate_size_mlp", module=_MODULE)
    sparse, kinds = settings.indices("moe_layers"), settings.kinds("layer_types", (FULL, _CHUNKED))
    return Decoder.read(
        settings,
        [
            Layer(chunked if kind == _CHUNKED else full, routed if index in sparse else dense, 1)
            for index, kind in enumerate(kinds)
        ],
    )


FAMILY = text_family(
    name="llama4-text",
    title="Llama 4: chunked attention, a shared and routed experts",
    model_types=("llama4_text",),
    read=_read,
    notes=(
        Note(
            "the model needs the experts that were chosen for a token; transformers executes every expert on every "
            "token, and scales the results of the others to nothing",
            applies=lambda decoder, workload: any(layer.experts for layer in decoder.layers),
        ),
    ),
)
