"""LightOnOCR: Pixtral's encoder and a decoder like Qwen 3's.

Source: transformers, ``modeling_lighton_ocr.py``, ``processing_lighton_ocr.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.vision_language import VisionLanguageModules
from stagemeter.models.vision.pixtral import pixtral_family

FAMILY = pixtral_family(
    name="lighton-ocr",
    title="LightOnOCR: a page at its own resolution through Pixtral's encoder, a decoder like Qwen 3's",
    model_types=("lighton_ocr",),
    modules=VisionLanguageModules("model.vision_encoder", "model.vision_projection"),
    shipped={"lighton-ocr-default": "lighton_ocr_default.json"},
    own_patches=True,
)
