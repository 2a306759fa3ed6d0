"""GPT-OSS: sliding windows in every second layer, attention with sinks, biases everywhere, mixture of experts.

A sink is a number per head that takes part in the softmax and in no product. torch has no fused operator for it:
transformers runs this attention as two products with the scores between them, and so it is counted. Source:
transformers, ``modeling_gpt_oss.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import decoder, experts, grouped_query_attention, text_family, windows_by_layer
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    bias = settings.flag("attention_bias")
    sinks = settings.whole("num_attention_heads")
    routed = experts(settings, "num_local_experts", "intermediate_size", bias=True)
    return decoder(
        settings,
        [
            Layer(
                grouped_query_attention(settings, bias=bias, output_bias=bias, sinks=sinks, window=window, fused=False),
                routed,
                times=1,
            )
            for window in windows_by_layer(settings)
        ],
    )


FAMILY = text_family(
    name="gpt-oss",
    title="GPT-OSS: sliding windows, attention sinks, mixture of experts",
    model_types=("gpt_oss",),
    read=_read,
    shipped={"gpt-oss-20b": "gpt_oss_20b.json", "gpt-oss-120b": "gpt_oss_120b.json"},
)
