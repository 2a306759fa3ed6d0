"""Gemma 3: SigLIP's vision transformer, pooled to a square of tokens and projected, and a decoder with windows.

A page is squeezed into the one square view that the encoder takes. Source: transformers, ``modeling_gemma3.py``,
``modeling_siglip.py``, ``image_processing_gemma3.py``.
"""

from __future__ import annotations

import math

from stagemeter.errors import StagemeterError
from stagemeter.models.settings import Settings
from stagemeter.models.vision_language import (
    Projector,
    VisionLanguageArchitecture,
    one_view,
    part,
    text_decoder,
    vision_language_family,
    vision_transformer,
)


def _read(settings: Settings) -> VisionLanguageArchitecture:
    sizes, decoder = part(settings, "vision_config"), text_decoder(settings)
    sizes.refuse("vision_use_head", True, "Gemma 3's encoder has no pooling head")
    vision = vision_transformer(sizes, class_token=False, patch_bias=True)
    tokens = settings.whole("mm_tokens_per_image")
    if math.isqrt(tokens) ** 2 != tokens or vision.side % math.isqrt(tokens):
        raise StagemeterError(
            f"{settings.source}: mm_tokens_per_image {tokens} is no square that {vision.side} x {vision.side} patches "
            "can be pooled to"
        )
    projector = Projector(vision.hidden, decoder.hidden, tokens, layers=1, bias=False, norm=vision.hidden)
    return VisionLanguageArchitecture(vision, projector, decoder)


FAMILY = vision_language_family(
    name="gemma3",
    title="Gemma 3: one view through SigLIP, pooled; decoder with sliding windows",
    model_types=("gemma3",),
    read=_read,
    views=one_view,
    shipped={"gemma-3-4b": "gemma_3_4b.json"},
    notes=(
        "tokens of one picture attend to one another both ways; flops_causal halves them like text",
        "pooling is an average, which costs nothing by convention",
    ),
    projector_input=lambda sizes, views: (views, sizes.vision.side**2, sizes.vision.hidden),
)
