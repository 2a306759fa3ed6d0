"""Llama 4's language models: chunked attention in most layers, mixtures of experts with a shared one.

Source: transformers, ``modeling_llama4.py``, ``configuration_llama4.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import FULL, decoder, experts, grouped_query_attention, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.settings import Settings

_CHUNKED, _MODULE = "chunked_attention", "feed_forward"


def _read(settings: Settings) -> Decoder:
    bias = settings.flag("attention_bias")
    routed = experts(
        settings,
        "num_local_experts",
        "intermediate_size",
        shared_intermediate=settings.whole("intermediate_size"),
        every_one=True,
        module=_MODULE,
    )
    dense = GatedFeedForward(settings.whole("intermediate_size_mlp"), module=_MODULE)
    sparse = set(settings.indices("moe_layers"))
    # Null: no chunks.
    chunk = settings.whole("attention_chunk_size", 0)
    return decoder(
        settings,
        [
            Layer(
                # A step computes the scores of as many tokens as a chunk has, and masks those of the chunk before.
                grouped_query_attention(settings, bias=bias, output_bias=bias, window=chunk * (kind == _CHUNKED)),
                routed if index in sparse else dense,
                1,
            )
            for index, kind in enumerate(settings.kinds("layer_types", (FULL, _CHUNKED)))
        ],
    )


FAMILY = text_family(
    name="llama4-text",
    title="Llama 4: chunked attention, a shared and routed experts",
    model_types=("llama4_text",),
    read=_read,
    shipped={},
    notes=(
        "transformers runs every expert on every token and scales the results of those that were not chosen to "
        "nothing, and so is it counted: an engine that runs the chosen ones alone does num_experts_per_tok / "
        "num_local_experts of the experts' work",
    ),
)
