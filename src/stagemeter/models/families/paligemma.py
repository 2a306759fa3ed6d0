"""PaliGemma 1 and 2: SigLIP's vision transformer, one linear layer, and Gemma's decoder.

A page is squeezed into the encoder's one square view. Source: transformers, ``modeling_paligemma.py``,
``processing_paligemma.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.encoders import square_encoder, square_pixels, square_projector, square_rules
from stagemeter.models.builders.vision_language import Pages, VisionLanguageArchitecture, vision_language_family
from stagemeter.models.decoder.grouped_query import refuse_window
from stagemeter.models.families import text_decoder
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import Projector, require_width
from stagemeter.models.vision.vit import siglip


def _read(settings: Settings) -> VisionLanguageArchitecture:
    text = settings.part("text_config").values
    # With a window, transformers fails on its own masks for a page.
    refuse_window(settings.part("text_config"))
    # Attention is bidirectional in any case.
    decoder = text_decoder(
        Settings({**settings.values, "text_config": {**text, "use_bidirectional_attention": None}}, settings.source)
    )
    vision = siglip(settings.part("vision_config"))
    # transformers overwrites the settings of the parts (PaliGemmaConfig.__post_init__).
    require_width(settings, "projection_dim", decoder.hidden, "the decoder")
    projector = Projector(vision.hidden, decoder.hidden, vision.side**2, layers=1, bias=True)
    return VisionLanguageArchitecture(vision, projector, decoder)


FAMILY = vision_language_family(
    name="paligemma",
    title="PaliGemma 1 and 2: one view through SigLIP, a decoder like Gemma's",
    model_types=("paligemma",),
    sizes=VisionLanguageArchitecture,
    read=_read,
    rules=square_rules(default=224, crops=False),
    stages=(square_encoder(), square_projector()),
    pages=Pages(square_pixels),
    tags=lambda sizes, views: 0,
    shipped=("paligemma-3b",),
    notes=("tokens of a page and its prompt attend to one another both ways: all pairs of a prefill are visible",),
    causal=False,
)
