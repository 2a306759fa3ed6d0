"""Gemma 3: SigLIP's vision transformer, pooled to a square of tokens and projected, and a decoder with windows.

A page is squeezed into the encoder's one square view. Source: transformers, ``modeling_gemma3.py``,
``modeling_siglip.py``, ``image_processing_gemma3.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import square_encoder, square_pixels, square_projector
from stagemeter.models.builders.vision_language import Pages, VisionLanguageArchitecture, vision_language_family
from stagemeter.models.decoder.visibility import later_pairs
from stagemeter.models.families import text_decoder
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import MOST_TILES, ProcessorSettings
from stagemeter.models.pages.square_views import one_view
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import Projector
from stagemeter.models.vision.vit import siglip


def _read(settings: Settings) -> VisionLanguageArchitecture:
    decoder, vision = text_decoder(settings), siglip(settings.part("vision_config"))
    tokens = settings.whole("mm_tokens_per_image")
    if math.isqrt(tokens) ** 2 != tokens or vision.side % math.isqrt(tokens):
        raise StagemeterError(
            f"{settings.source}: mm_tokens_per_image is {tokens}. It must be a square that {vision.side} x "
            f"{vision.side} patches can be pooled to"
        )
    projector = Projector(vision.hidden, decoder.hidden, tokens, layers=1, bias=False, norm=vision.hidden)
    return VisionLanguageArchitecture(vision, projector, decoder)


def _rules(sizes: VisionLanguageArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page is one view; crops of it join if the image processor's file says so.

    Source: transformers, ``image_processing_pil_gemma3.py``, ``pan_and_scan``.
    """
    image = settings.image
    whole = one_view(settings, sizes.vision.image_size, sizes.projector.tokens, default=224, crops=False)
    if not image.flag("do_pan_and_scan", published=False):
        return whole
    smallest = image.number("pan_and_scan_min_crop_size", published=256)
    most = image.number(
        "pan_and_scan_max_num_crops", published=4, most=MOST_TILES, option="max_tiles", name="max_tiles"
    )
    activating = image.ratio("pan_and_scan_min_ratio_to_activate", published=1.2)

    def page(width: int, height: int) -> PageViews:
        views = whole.page(width, height)
        crops = _crops(max(width, height), min(width, height), smallest, most, activating)
        if not crops:
            return views
        grid = (crops, 1) if width >= height else (1, crops)
        return replace(views, local_views=crops, tile_grid=grid, image_tokens=(1 + crops) * views.image_tokens)

    return PageRules(page)


def _crops(longer: int, shorter: int, smallest: int, most: int, activating: float) -> int:
    """Return the crops of a page along its longer side; 0 without any."""
    if longer / shorter < activating:
        return 0
    crops = min(longer // smallest, math.floor(longer / shorter + 0.5))
    crops = min(most, max(2, crops))
    return crops if min(math.ceil(longer / crops), shorter) >= smallest else 0


def _tags(sizes: VisionLanguageArchitecture, views: PageViews) -> int:
    """Return the tokens around a page: its begin, its end, and two line breaks, a token, before and behind.

    Source: transformers, ``processing_gemma3.py``, ``full_image_sequence``.
    """
    if views.local_views:
        raise StagemeterError(
            "do_pan_and_scan: true, and among several pages the tokens of the text between the crops of a page are not "
            "known. Set it to false, or give one page"
        )
    return 4


def _both_ways(sizes: VisionLanguageArchitecture, workload: Workload) -> tuple[int, int]:
    """Return the pairs of a token of a view and a later one of the same view, which all layers show.

    The processor writes text between views. Source: transformers, ``modeling_gemma3.py``,
    ``create_masks_for_vision_model``; ``processing_gemma3.py``, ``full_image_sequence``.
    """
    views = workload.global_views + workload.local_views
    pairs = (workload.prompt_tokens >= workload.image_tokens) * views * later_pairs(sizes.projector.tokens)
    return pairs, pairs


FAMILY = vision_language_family(
    name="gemma3",
    title="Gemma 3: one view through SigLIP, pooled; decoder with sliding windows",
    model_types=("gemma3",),
    sizes=VisionLanguageArchitecture,
    read=_read,
    rules=_rules,
    stages=(
        square_encoder(),
        square_projector(shape=lambda sizes: (sizes.vision.side**2, sizes.vision.hidden)),
    ),
    pages=Pages(square_pixels),
    tags=_tags,
    shipped=("gemma-3-4b",),
    later=_both_ways,
    notes=(
        "pooling is an average, which costs nothing by convention",
        "a page is one view; crops are counted where the image processor's file has do_pan_and_scan, though "
        "transformers' whole processor sets it to false in each call that does not ask for crops",
    ),
)
