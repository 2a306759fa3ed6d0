"""Gemma 1, 2 and 3, the language models: layers with a sliding window between those that attend to everything.

Gemma 2 caps its scores, for which torch has no fused operator: transformers runs its attention as two products with
the scores between them, and so it is counted. Source: transformers, ``modeling_gemma.py``, ``modeling_gemma2.py``,
``modeling_gemma3.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import decoder, gated, grouped_query_attention, text_family, windows_by_layer
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> Decoder:
    kind = settings.values["model_type"]
    settings.refuse("use_bidirectional_attention", True, "attention to later tokens is not part of this family")
    bias = settings.flag("attention_bias")
    if kind == "gemma":
        attention = grouped_query_attention(settings, bias=bias, output_bias=bias)
        return decoder(settings, [Layer(attention, gated(settings), settings.whole("num_hidden_layers"))])
    norms = 2 * settings.whole("head_dim") if kind == "gemma3_text" else 0
    fused = kind == "gemma3_text"
    return decoder(
        settings,
        [
            Layer(
                grouped_query_attention(settings, bias=bias, output_bias=bias, norms=norms, window=window, fused=fused),
                gated(settings),
                times=1,
                norms=4,
            )
            for window in windows_by_layer(settings)
        ],
    )


FAMILY = text_family(
    name="gemma",
    title="Gemma 1, 2 and 3, text alone: sliding windows, tied embedding",
    model_types=("gemma", "gemma2", "gemma3_text"),
    read=_read,
    shipped={"gemma-2-9b": "gemma_2_9b.json", "gemma-3-1b": "gemma_3_1b.json"},
)
