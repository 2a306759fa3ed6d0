"""Unlimited-OCR: DeepSeek-OCR whose generated tokens attend to the prompt and to the last few generated tokens.

Source: transformers, ``modeling_unlimited_ocr.py``, ``image_processing_unlimited_ocr.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from stagemeter.models.builders.page_stages import page_passes
from stagemeter.models.builders.vision_language import LANGUAGE
from stagemeter.models.decoder.stages import decoder_stages
from stagemeter.models.families.deepseek_ocr.architecture import DeepseekOCRArchitecture
from stagemeter.models.families.deepseek_ocr.configuration import (
    architecture_from_config,
    has_window,
    is_unlimited,
)
from stagemeter.models.families.deepseek_ocr.family import FAMILY as DEEPSEEK_OCR
from stagemeter.models.families.deepseek_ocr.family import language_model, page_inputs
from stagemeter.models.families.deepseek_ocr.tiling import page_rule
from stagemeter.models.family import Family
from stagemeter.models.page_views import PageRules
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import read_tile_limits
from stagemeter.models.shipped import shipped_configurations

#: Sides in pixels of the view of a whole page and of a tile by default.
_VIEW, _TILE = 1024, 640
#: Fewest and most tiles of a page by default.
_FEWEST_TILES, _MOST_TILES = 2, 32
#: Longest side of a view in pixels.
_LARGEST_VIEW = 8192


def _takes(config: Mapping[str, Any]) -> bool:
    return is_unlimited(config) and has_window(config)


def _rules(sizes: DeepseekOCRArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page is one view as a whole, and a page larger than a tile also becomes tiles.

    Each row of patches ends in a token, and one more token is between tiles and page. Source: transformers,
    ``processing_unlimited_ocr.py``, ``replace_image_token``.
    """
    image, patch = settings.image, sizes.sam.patch_size
    settings.whole.require("patch_size", needed=patch)
    settings.whole.require("downsample_ratio", needed=sizes.downsample_ratio)
    view_side, tile_side = image.side("size", published=_VIEW), image.side("tile_size", published=_TILE)
    for key, side in (("size", view_side), ("tile_size", tile_side)):
        if not patch <= side <= _LARGEST_VIEW:
            image.refuse(key, f"a view has from {patch} to {_LARGEST_VIEW} pixels a side")
    limits = read_tile_limits(image, most=_MOST_TILES, fewest=_FEWEST_TILES)
    crops = image.flag("crop_to_patches", published=True)
    return PageRules(page_rule(view_side, tile_side, crops, limits, patch, sizes.downsample_ratio))


FAMILY: Family[DeepseekOCRArchitecture] = replace(
    DEEPSEEK_OCR,
    name="unlimited-ocr",
    title="Unlimited-OCR: DeepSeek-OCR with a window over what was generated",
    rules=_rules,
    tags=lambda sizes, views: 0,
    modes={},
    takes=_takes,
    architecture_from_config=partial(architecture_from_config, window=True),
    shipped=shipped_configurations("unlimited-ocr-default"),
    stages=(
        *DEEPSEEK_OCR.stages[:3],
        *decoder_stages(language_model, LANGUAGE),
    ),
    whole_passes=page_passes(language_model, page_inputs),
    notes=("a generated token attends to the whole prompt, and to generated tokens within the window",),
)
