"""LLaVA 1.5: CLIP's vision transformer, a projector of two layers, and a language model.

A page is shrunk and cropped to the one view that the encoder takes. Source: transformers, ``modeling_llava.py``,
``modeling_clip.py``, ``processing_llava.py``.
"""

from __future__ import annotations

from stagemeter.models.family import PageViews
from stagemeter.models.settings import Settings
from stagemeter.models.vision_language import (
    Projector,
    VisionLanguageArchitecture,
    part,
    square,
    text_decoder,
    vision_language_family,
)
from stagemeter.models.vision_transformer import VisionTransformer


def _read(settings: Settings) -> VisionLanguageArchitecture:
    sizes, decoder = part(settings, "vision_config"), text_decoder(settings)
    for key, kept in (("vision_feature_layer", -2), ("vision_feature_select_strategy", "default")):
        if settings.values.get(key, kept) != kept:
            settings.refuse(key, settings.values[key], f"this family takes features as LLaVA 1.5 does, with {kept!r}")
    sizes.split("hidden_size", "num_attention_heads")
    vision = VisionTransformer(
        hidden=sizes.whole("hidden_size"),
        layers=sizes.whole("num_hidden_layers"),
        heads=sizes.whole("num_attention_heads"),
        intermediate=sizes.whole("intermediate_size"),
        patch_size=square(sizes, "patch_size"),
        image_size=square(sizes, "image_size"),
        class_token=True,
        patch_bias=False,
        outer_norms=2,
        # The features are those before the last layer; that layer runs, and so does the norm of its class token.
        unused_norms=0,
    )
    bias = settings.flag("multimodal_projector_bias", default=True)
    projector = Projector(vision.hidden, decoder.hidden, vision.side**2, layers=2, bias=bias)
    return VisionLanguageArchitecture(vision, projector, decoder)


def _views(sizes: VisionLanguageArchitecture, width: int, height: int) -> PageViews:
    side = sizes.vision.image_size
    return PageViews(1, 0, side, side, (1, 1), sizes.projector.tokens)


FAMILY = vision_language_family(
    name="llava",
    title="LLaVA 1.5: one view through CLIP, two-layer projector",
    model_type="llava",
    read=_read,
    views=_views,
    shipped={"llava-1.5-7b": "llava_1_5_7b.json"},
    notes=("the encoder's last layer runs, though its result goes unused: features are those of the layer before it",),
)
