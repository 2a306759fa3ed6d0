"""Qwen 3.5, dense and mixture of experts: a page at its own resolution, a decoder like Qwen3-Next's.

Source: transformers, ``modeling_qwen3_5.py``, ``modeling_qwen3_5_moe.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.models.families.qwen3_next import FAMILY as TEXT
from stagemeter.models.families.qwen3_vl import MAX_PIXELS, MIN_PIXELS, VIDEO_PIXELS, later_vision
from stagemeter.models.native_language import NativeArchitecture, native_family
from stagemeter.models.settings import Settings
from stagemeter.models.vision_language import part, text_decoder

#: Kinds of language models by the ``model_type`` of the whole.
_DECODERS = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}


def _read(config: Mapping[str, Any], source: str) -> NativeArchitecture:
    settings = Settings(config, source)
    text = {**part(settings, "text_config").values, "model_type": _DECODERS[config["model_type"]]}
    decoder = text_decoder(Settings({**config, "text_config": text}, source))
    return NativeArchitecture(later_vision(part(settings, "vision_config"), decoder, source), decoder)


FAMILY = native_family(
    name="qwen3.5",
    title="Qwen 3.5: a page at its own resolution, a decoder of gated delta networks and gated attention",
    model_types=tuple(_DECODERS),
    read=_read,
    shipped={"qwen3.5-27b": "qwen3_5_27b.json"},
    notes=(
        f"pages are resized to between {MIN_PIXELS:,} and {MAX_PIXELS:,} pixels, all frames of a video together to "
        f"between {VIDEO_PIXELS[0]:,} and {VIDEO_PIXELS[1]:,}, as the published processors do",
        "a patch spans two pictures: a single one is doubled, and so is the last of an odd number of frames",
        "the time before each two frames of a video is text, to be given as such",
        *TEXT.notes,
    ),
    positions=True,
    states=True,
    video_pixels=VIDEO_PIXELS,
)
