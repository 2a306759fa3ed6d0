"""Idefics 3 and SmolVLM: tiles and the whole page through SigLIP, some patches to a token, a decoder like Llama's.

Source: transformers, ``modeling_idefics3.py``, ``modeling_smolvlm.py``, ``image_processing_pil_idefics3.py``.
"""

from __future__ import annotations

import math
from typing import Any

from stagemeter.errors import StagemeterError
from stagemeter.models.family import PageViews
from stagemeter.models.page_stages import page_tokens
from stagemeter.models.settings import Settings
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision_language import (
    Projector,
    VisionLanguageArchitecture,
    VisionLanguageModules,
    part,
    text_decoder,
    vision_language_family,
    vision_transformer,
)
from stagemeter.workload import Workload

#: How many times longer than a view the longer side of a page is made, as the published processors have it.
_LONGEST = 4


def _read(settings: Settings) -> VisionLanguageArchitecture:
    decoder = text_decoder(settings)
    vision = vision_transformer(part(settings, "vision_config"), class_token=False, patch_bias=True)
    factor = settings.whole("scale_factor", 2)
    if vision.side % factor:
        raise StagemeterError(
            f"{settings.source}: a view has {vision.side} patches per side, which scale_factor {factor} cannot merge"
        )
    projector = Projector(vision.hidden * factor**2, decoder.hidden, (vision.side // factor) ** 2, layers=1, bias=False)
    return VisionLanguageArchitecture(vision, projector, decoder)


def _views(sizes: VisionLanguageArchitecture, width: int, height: int) -> PageViews:
    side = sizes.vision.image_size
    columns, rows = tile_grid(width, height, side)
    views = columns * rows + 1
    return PageViews(1, views - 1, side, side, (columns, rows), views * sizes.projector.tokens)


def tile_grid(width: int, height: int, side: int) -> tuple[int, int]:
    """Columns and rows of tiles: the longer side is made as long as `_LONGEST` views, the other one kept in proportion.

    Source: transformers, ``image_processing_pil_idefics3.py``, ``get_number_of_image_patches``.
    """
    longest = _LONGEST * side
    shorter = int(longest / (width / height)) if width >= height else int(longest * (width / height))
    # Made even first, then whole tiles of what is left of it at that shape.
    shorter = max(1, shorter + shorter % 2)
    if width >= height:
        return _LONGEST, math.ceil(int(longest / (longest / shorter)) / side)
    return math.ceil(int(longest * (shorter / longest)) / side), _LONGEST


def _page(model: Any, sizes: VisionLanguageArchitecture, workload: Workload) -> dict[str, Any]:
    """Pixels that are no padding, which is zeros, and the tokens that stand for them."""
    import torch

    side, views = sizes.vision.image_size, workload.global_views + workload.local_views
    shape = (workload.batch_size, views, CHANNELS, side, side)
    # One element, seen as many: its value is known however large the batch is.
    page = {
        "pixel_values": torch.ones((), dtype=model.dtype, device=model.device).expand(shape),
        "pixel_attention_mask": torch.ones((), dtype=torch.bool, device=model.device).expand(*shape[:2], side, side),
    }
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page


FAMILY = vision_language_family(
    name="idefics3",
    title="Idefics 3, SmolVLM, Granite-Docling: tiles and the whole page through SigLIP, some patches to a token",
    model_types=("idefics3", "smolvlm"),
    read=_read,
    views=_views,
    shipped={"smolvlm-256m": "smolvlm_256m.json", "granite-docling-258m": "granite_docling_258m.json"},
    notes=(
        f"the longer side of a page is made {_LONGEST} views long, as the published processors do",
        "what the processor writes around the tokens of each tile is text",
    ),
    projector_input=lambda sizes, views: (views, sizes.vision.tokens, sizes.vision.hidden),
    modules=VisionLanguageModules("model.vision_model", "model.connector", "model.text_model"),
    valued_page=_page,
)
