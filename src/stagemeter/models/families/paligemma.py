"""PaliGemma 1 and 2: SigLIP's vision transformer, one linear layer, and Gemma's decoder.

A page is squeezed into the one square view that the encoder takes. Source: transformers, ``modeling_paligemma.py``,
``processing_paligemma.py``.
"""

from __future__ import annotations

from stagemeter.core.errors import StagemeterError
from stagemeter.models.builders.text import refuse_window
from stagemeter.models.builders.vision_language import (
    Projector,
    VisionLanguageArchitecture,
    one_view,
    part,
    text_decoder,
    vision_language_family,
    vision_transformer,
)
from stagemeter.models.settings import Settings


def _read(settings: Settings) -> VisionLanguageArchitecture:
    sizes, text = part(settings, "vision_config"), part(settings, "text_config").values
    # transformers' own code fails on the masks that it makes of a page then.
    refuse_window(part(settings, "text_config"))
    # That attention is both ways goes without saying here.
    decoder = text_decoder(
        Settings({**settings.values, "text_config": {**text, "use_bidirectional_attention": None}}, settings.source)
    )
    sizes.require("model_type", "siglip_vision_model", "its encoder")
    sizes.require("vision_use_head", False, "its encoder")
    # Above the parts, whose own settings transformers writes over (PaliGemmaConfig.__post_init__).
    if settings.whole("projection_dim") != decoder.hidden:
        raise StagemeterError(
            f"{settings.source}: projection_dim is {settings.whole('projection_dim')}, and the decoder takes "
            f"{decoder.hidden}"
        )
    vision = vision_transformer(sizes, class_token=False, patch_bias=True)
    projector = Projector(vision.hidden, decoder.hidden, vision.side**2, layers=1, bias=True)
    return VisionLanguageArchitecture(vision, projector, decoder)


FAMILY = vision_language_family(
    name="paligemma",
    title="PaliGemma 1 and 2: one view through SigLIP, a decoder like Gemma's",
    model_types=("paligemma",),
    read=_read,
    rules=one_view(default=224, crops=False),
    shipped={"paligemma-3b": "paligemma_3b.json"},
    notes=(
        "tokens of a page and its prompt attend to one another both ways: flops_causal of the prefill are its FLOPs",
    ),
    causal=False,
)
