"""LightOnOCR: Pixtral's encoder and a decoder like Qwen 3's.

Source: transformers, ``modeling_lighton_ocr.py``, ``processing_lighton_ocr.py``.
"""

from __future__ import annotations

from stagemeter.models.families.mistral3 import pixtral_family

FAMILY = pixtral_family(
    name="lighton-ocr",
    title="LightOnOCR: a page at its own resolution through Pixtral's encoder, a decoder like Qwen 3's",
    model_types=("lighton_ocr",),
    encoder="model.vision_encoder",
    projector="model.vision_projection",
    shipped=("lighton-ocr-default",),
    own_patches=True,
)
