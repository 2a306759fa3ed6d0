"""Qwen 2-VL and 2.5-VL: a page at its own resolution, four patches to a token, a decoder like Qwen 2's.

Qwen 2.5-VL attends within windows in most layers of its encoder. Source: transformers, ``modeling_qwen2_vl.py``,
``modeling_qwen2_5_vl.py``, ``image_processing_pil_qwen2_vl.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.models.builders.native_language import NativeArchitecture, native_family
from stagemeter.models.builders.vision_language import part, text_decoder
from stagemeter.models.settings import Settings
from stagemeter.models.vision.native_vision import native_vision

_WINDOWED = "qwen2_5_vl"
#: Pixels between which a page is resized, as the published processors have it (``preprocessor_config.json``).
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 14 * 14 * 4 * 16384


def _read(config: Mapping[str, Any], source: str) -> NativeArchitecture:
    settings = Settings(config, source)
    text = {**part(settings, "text_config").values, "model_type": "qwen2"}
    decoder = text_decoder(Settings({**config, "text_config": text}, source))
    sizes, windowed = part(settings, "vision_config"), config["model_type"] == _WINDOWED
    width, layers = "hidden_size" if windowed else "embed_dim", sizes.whole("depth")
    full = sizes.indices("fullatt_block_indexes") if windowed else range(layers)
    between = sizes.whole("intermediate_size") if windowed else sizes.whole(width) * sizes.whole("mlp_ratio")
    vision = native_vision(
        sizes,
        decoder.hidden,
        (_MIN_PIXELS, _MAX_PIXELS),
        width=width,
        outputs="out_hidden_size" if windowed else "hidden_size",
        window_size=sizes.whole("window_size") if windowed else 0,
        full_layers=len({index for index in full if index < layers}),
        intermediate=between,
        gated=windowed,
        norm_bias=not windowed,
    )
    return NativeArchitecture(vision, decoder)


FAMILY = native_family(
    name="qwen2-vl",
    title="Qwen 2-VL and 2.5-VL: a page at its own resolution, four patches to a token",
    model_types=("qwen2_vl", _WINDOWED),
    read=_read,
    shipped={"qwen2-vl-7b": "qwen2_vl_7b.json", "qwen2.5-vl-7b": "qwen2_5_vl_7b.json"},
    notes=("a patch spans two pictures: a single one is doubled, and so is the last of an odd number of frames",),
)
