"""LLaVA 1.5: CLIP's vision transformer, a projector of two layers, and a language model.

A page is shrunk and cropped to the encoder's one view. Source: transformers, ``modeling_llava.py``,
``modeling_clip.py``, ``processing_llava.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.encoders import square_encoder, square_pixels, square_projector, square_rules
from stagemeter.models.builders.vision_language import Pages, VisionLanguageArchitecture, vision_language_family
from stagemeter.models.families import text_decoder
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import Projector
from stagemeter.models.vision.vit import clip


def _read(settings: Settings) -> VisionLanguageArchitecture:
    decoder, vision = text_decoder(settings), clip(settings.part("vision_config"))
    settings.require("vision_feature_layer", -2, "what it takes of its encoder")
    settings.require("vision_feature_select_strategy", "default", "what it takes of its encoder")
    bias = settings.flag("multimodal_projector_bias")
    projector = Projector(vision.hidden, decoder.hidden, vision.side**2, layers=2, bias=bias)
    return VisionLanguageArchitecture(vision, projector, decoder)


FAMILY = vision_language_family(
    name="llava",
    title="LLaVA 1.5: one view through CLIP, two-layer projector",
    model_types=("llava",),
    sizes=VisionLanguageArchitecture,
    read=_read,
    rules=square_rules(default=224, crops=True),
    stages=(square_encoder(unused_layers=lambda sizes: 1), square_projector()),
    pages=Pages(square_pixels),
    tags=lambda sizes, views: 0,
    shipped=("llava-1.5-7b",),
    notes=("features come from the encoder's last layer but one; transformers also executes the last, unused",),
)
