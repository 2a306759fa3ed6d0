"""Unlimited-OCR: DeepSeek-OCR, of which generated tokens attend to the prompt and to the last few of their own.

Source: transformers, ``modeling_unlimited_ocr.py``, ``image_processing_unlimited_ocr.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

from stagemeter.models.decoder_stages import DecoderModules, decoder_stages
from stagemeter.models.deepseek_ocr_config import DeepseekOCRArchitecture, architecture_from_config, has_window
from stagemeter.models.families.deepseek_ocr import FAMILY as DEEPSEEK_OCR
from stagemeter.models.families.deepseek_ocr import language_model, page_inputs
from stagemeter.models.family import Family, PageViews
from stagemeter.models.page_stages import page_passes
from stagemeter.models.tiling import tile_grid

#: Sides in pixels of the view of a whole page and of a tile, as the processor has them by default.
_VIEW, _TILE = 1024, 640
#: How few and how many tiles a page becomes, as the processor has it by default.
_FEWEST_TILES, _MOST_TILES = 2, 32


def _takes(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "unlimited_ocr" and has_window(config)


def _views(sizes: DeepseekOCRArchitecture, width: int, height: int) -> PageViews:
    """Views of a page: the page as a whole, and tiles of one that is larger than a tile.

    Each row of patches ends in a token, and one more token is between tiles and page. Source: transformers,
    ``processing_unlimited_ocr.py``, ``replace_image_token``.
    """
    whole, tile = (math.ceil(side // sizes.sam.patch_size / sizes.downsample_ratio) for side in (_VIEW, _TILE))
    tokens = whole * (whole + 1) + 1
    if max(width, height) <= _TILE:
        return PageViews(1, 0, _VIEW, _VIEW, (1, 1), tokens, _TILE)
    columns, rows = tile_grid(width, height, _TILE, _MOST_TILES, _FEWEST_TILES)
    tokens += rows * tile * (columns * tile + 1)
    return PageViews(1, columns * rows, _VIEW, _VIEW, (columns, rows), tokens, _TILE)


FAMILY: Family[DeepseekOCRArchitecture] = replace(
    DEEPSEEK_OCR,
    name="unlimited-ocr",
    title="Unlimited-OCR: DeepSeek-OCR with a window over what was generated",
    views=_views,
    takes=_takes,
    architecture_from_config=partial(architecture_from_config, window=True),
    shipped={"unlimited-ocr-default": resources.files("stagemeter.models") / "configs" / "unlimited_ocr_default.json"},
    stages=(
        *DEEPSEEK_OCR.stages[:3],
        *decoder_stages(language_model, DecoderModules("model.language_model", "lm_head"), windows=True),
    ),
    whole_passes=page_passes(language_model, page_inputs),
    notes=("a generated token attends to the whole prompt, and to the last generated ones as far as the window goes",),
)
