"""GOT-OCR 2.0: SAM's encoder over one view, two strided convolutions and a projection, a decoder like Qwen 2's.

A page is squeezed into the encoder's square view. The count of its attention follows transformers: two products, with
scores written between them. Source: transformers, ``modeling_got_ocr2.py``, ``processing_got_ocr2.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator
from stagemeter.models.builders.encoders import views_of
from stagemeter.models.builders.view_groups import group_pixels, group_stage, view_group
from stagemeter.models.builders.vision_language import PROJECTOR, VISION, Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.families import text_decoder
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import read_tile_limits, tiles_and_page
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.projector import LinearSize, linears_operators, linears_parameters
from stagemeter.models.vision.sam import (
    VIEW_VARIABLES,
    SamArchitecture,
    ViewGroup,
    sam_architecture,
    sam_downsampling,
    sam_downsampling_parameters,
    sam_encoder,
    sam_encoder_parameters,
)


@dataclass(frozen=True, slots=True)
class GotOcr2Architecture(Sizes):
    """Sizes of GOT-OCR 2.0; SAM's two strided convolutions are part of the projector."""

    sam: SamArchitecture
    decoder: Decoder


def _read(settings: Settings) -> GotOcr2Architecture:
    sizes, decoder = settings.part("vision_config"), text_decoder(settings)
    for key in ("use_abs_pos", "use_rel_pos", "qkv_bias"):
        sizes.refuse(key, False, "the encoder of GOT-OCR 2.0 has them")
    neck = sizes.whole("output_channels")
    sam = sam_architecture(sizes, (2 * neck, decoder.hidden))
    return GotOcr2Architecture(sam, decoder)


def _views(sizes: GotOcr2Architecture, views: int) -> ViewGroup:
    return view_group(sizes.sam, views, sizes.sam.pretrain_size)


def _groups(sizes: GotOcr2Architecture, workload: Workload) -> list[ViewGroup]:
    return [_views(sizes, views_of(workload))]


def _rules(sizes: GotOcr2Architecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page is one view, or tiles if the image processor's file says so."""
    image, side, tokens = settings.image, sizes.sam.pretrain_size, _views(sizes, 1).quarter_grid ** 2
    if image.flag("crop_to_patches", published=False):
        return tiles_and_page(image, read_tile_limits(image, most=12, fewest=1), side, tokens)
    image.side("size", published=side, default=384, needed=side)
    image.require("do_resize", needed=True, why="views of one size need")
    return PageRules(lambda width, height: PageViews(1, 0, side, side, (1, 1), tokens))


def _linears(sizes: GotOcr2Architecture) -> list[LinearSize]:
    return [LinearSize(sizes.decoder.hidden, sizes.decoder.hidden, bias=True)]


def _projector_operators(sizes: GotOcr2Architecture, group: ViewGroup) -> list[Operator]:
    return [*sam_downsampling(sizes.sam, group), *linears_operators(_linears(sizes), group.tokens)]


def _page(model: Any, sizes: GotOcr2Architecture, workload: Workload) -> dict[str, Any]:
    return {"pixel_values": group_pixels(model, sizes, *_groups(sizes, workload))[0]}


FAMILY = vision_language_family(
    name="got-ocr2",
    title="GOT-OCR 2.0: one view through SAM, a decoder like Qwen 2's",
    model_types=("got_ocr2",),
    sizes=GotOcr2Architecture,
    read=_read,
    rules=_rules,
    stages=(
        group_stage(
            name="sam",
            title="SAM encoder, the page as one view",
            module=VISION,
            operators=lambda sizes, group: sam_encoder(sizes.sam, group, fused=False),
            parameters=lambda sizes: sam_encoder_parameters(sizes.sam),
            inputs=group_pixels,
            variables=VIEW_VARIABLES,
            groups=_groups,
        ),
        group_stage(
            name="projector",
            title="two strided convolutions and a projection to the decoder's width",
            module=PROJECTOR,
            operators=_projector_operators,
            parameters=lambda sizes: sam_downsampling_parameters(sizes.sam) + linears_parameters(_linears(sizes)),
            inputs=lambda model, sizes, group: (empty(model, group.views, sizes.sam.neck, group.grid, group.grid),),
            variables=VIEW_VARIABLES,
            groups=_groups,
        ),
    ),
    pages=Pages(_page),
    # One ``<img>`` and one ``</img>`` are around all pages. Source: ``processing_got_ocr2.py``.
    tags=lambda sizes, views: 0,
    shipped=("got-ocr2",),
    notes=(
        "a page is one view; tiles are counted where the image processor's file has crop_to_patches, though "
        "transformers' whole processor sets it to false in each call that does not ask for tiles",
    ),
)
