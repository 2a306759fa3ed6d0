"""Qwen 3.5, dense and mixture of experts: a page at its own resolution, a decoder like Qwen3-Next's.

Source: transformers, ``modeling_qwen3_5.py``, ``modeling_qwen3_5_moe.py``.
"""

from __future__ import annotations

from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.predictor import MTP_NOTE
from stagemeter.models.families import text_settings
from stagemeter.models.families.qwen2_vl import QwenVLArchitecture, decoder_of_type, qwen_vl_family
from stagemeter.models.families.qwen3_next import DELTA_NET_NOTE, read_predictor
from stagemeter.models.families.qwen3_vl import PAGE_NOTES, TOGETHER, later_vision
from stagemeter.models.settings import Settings

#: Type of the language model by the ``model_type`` of the whole.
_DECODERS = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}


def _read(settings: Settings) -> QwenVLArchitecture:
    decoder = decoder_of_type(settings, _DECODERS[settings.values["model_type"]])
    return QwenVLArchitecture(later_vision(settings.part("vision_config"), decoder, deep=False), decoder)


FAMILY = qwen_vl_family(
    name="qwen3.5",
    title="Qwen 3.5: a page at its own resolution, a decoder of gated delta networks and gated attention",
    model_types=tuple(_DECODERS),
    read=_read,
    shipped=("qwen3.5-27b",),
    notes=(*PAGE_NOTES, DELTA_NET_NOTE, MTP_NOTE),
    positions=True,
    prefill_variables=GatedDeltaNet.PREFILL_VARIABLES,
    videos=TOGETHER,
    predictor=lambda settings: read_predictor(text_settings(settings)),
)
