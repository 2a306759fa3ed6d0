"""Qwen 3.5, dense and mixture of experts: a page at its own resolution, a decoder like Qwen3-Next's.

Source: transformers, ``modeling_qwen3_5.py``, ``modeling_qwen3_5_moe.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.models.builders.native_language import NativeArchitecture, native_family
from stagemeter.models.builders.vision_language import part, text_decoder
from stagemeter.models.decoder.stages import OF_STATES
from stagemeter.models.families.qwen3_next import FAMILY as TEXT
from stagemeter.models.families.qwen3_vl import PAGE_NOTES, TOGETHER, later_vision
from stagemeter.models.settings import Settings

#: Kinds of language models by the ``model_type`` of the whole.
_DECODERS = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}


def _read(config: Mapping[str, Any], source: str) -> NativeArchitecture:
    settings = Settings(config, source)
    text = {**part(settings, "text_config").values, "model_type": _DECODERS[config["model_type"]]}
    decoder = text_decoder(Settings({**config, "text_config": text}, source))
    return NativeArchitecture(later_vision(part(settings, "vision_config"), decoder, deep=False), decoder)


FAMILY = native_family(
    name="qwen3.5",
    title="Qwen 3.5: a page at its own resolution, a decoder of gated delta networks and gated attention",
    model_types=tuple(_DECODERS),
    read=_read,
    shipped={"qwen3.5-27b": "qwen3_5_27b.json"},
    notes=(*PAGE_NOTES, *TEXT.notes),
    positions=True,
    prefill_variables=OF_STATES,
    videos=TOGETHER,
)
