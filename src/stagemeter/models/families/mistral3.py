"""Mistral Small 3.1 and later, and other models of Mistral AI that see: Pixtral's encoder, a decoder like Mistral's.

Source: transformers, ``modeling_mistral3.py``, ``processing_pixtral.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.vision_language import VisionLanguageModules
from stagemeter.models.vision.pixtral import pixtral_family

FAMILY = pixtral_family(
    name="mistral3",
    title="Mistral Small 3.1 and later: a page at its own resolution through Pixtral's encoder",
    model_types=("mistral3",),
    modules=VisionLanguageModules(),
    shipped={"mistral-small-3.1-24b": "mistral_small_3_1_24b.json"},
    notes=("the token that a processor writes after each row of a page's tokens counts as text",),
)
