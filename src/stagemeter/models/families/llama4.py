"""Llama 4: tiles, a vision transformer whose patches are merged by pixel shuffle, and Llama 4's language model.

Source: transformers, ``modeling_llama4.py``, ``image_processing_llama4.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator
from stagemeter.models.builders.encoders import VIEWS, projector_stage, square_pixels, views_of
from stagemeter.models.builders.page_stages import page_stage
from stagemeter.models.builders.vision_language import Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.decoder.stages import DecoderModules
from stagemeter.models.families import text_decoder
from stagemeter.models.families.llama4_text import FAMILY as TEXT
from stagemeter.models.family import Variables
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import MOST_TILES, ProcessorSettings
from stagemeter.models.pages.tiling import best_fit, tile_grids, tiles_beside_page
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.projector import LinearSize, linears_operators, linears_parameters, require_width
from stagemeter.models.vision.vit import VisionTransformer, vision_transformer, vit_operators, vit_parameters

_VISION, _PROJECTOR = "vision_model", "multi_modal_projector"
#: Most tiles of a page in the published processors (``preprocessor_config.json``).
_MOST_TILES = 16


@dataclass(frozen=True, slots=True)
class Llama4Architecture(Sizes):
    """Sizes of Llama 4.

    `merge_size` patches per side become one token. Side by side they have the width `adapter_inputs`; both layers of
    the adapter have `adapter_width`.
    """

    vision: VisionTransformer
    merge_size: int
    adapter_inputs: int
    adapter_width: int
    decoder: Decoder

    @property
    def adapter(self) -> list[LinearSize]:
        """Linear layers that merge the patches of a token."""
        return [LinearSize(self.adapter_inputs, self.adapter_width), LinearSize(self.adapter_width, self.adapter_width)]

    @property
    def view_tokens(self) -> int:
        """Tokens of a view."""
        return (self.vision.side // self.merge_size) ** 2


def _read(settings: Settings) -> Llama4Architecture:
    sizes = settings.part("vision_config")
    vision = vision_transformer(sizes, class_token=True, patch_bias=False, outer_norms=2)
    ratio = sizes.number("pixel_shuffle_ratio")
    merge = round(1 / ratio) if 1 / vision.side <= ratio <= 1 else 0
    width = sizes.whole("projector_output_dim")
    if not merge or vision.side % merge or merge * ratio != 1:
        raise StagemeterError(
            f"{sizes.source}: pixel_shuffle_ratio is {ratio!r}. One over it must divide the {vision.side} patches per "
            "side of a view"
        )
    merged = require_width(sizes, "intermediate_size", vision.hidden * merge**2, "what it is joined to")
    for key in ("projector_input_dim", "vision_output_dim"):
        require_width(sizes, key, width, "what it is joined to")
    return Llama4Architecture(vision, merge, merged, width, text_decoder(settings, tied_by_part=True))


def _rules(sizes: Llama4Architecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page becomes the tiles that it fits best. Source: ``image_processing_llama4.py``."""
    image, side = settings.image, sizes.vision.image_size
    image.side("size", published=side, default=336, needed=side)
    image.require("do_resize", needed=True, why="Llama 4's processor takes no other value than")
    most = image.number("max_patches", published=_MOST_TILES, most=MOST_TILES, option="max_tiles", name="max_tiles")
    largest = image.flag("resize_to_max_canvas", published=False)
    grids = tile_grids(most)

    def page(width: int, height: int) -> PageViews:
        grid = best_fit(width, height, side, grids, single_precision=True, largest=largest)
        return tiles_beside_page(grid, side, sizes.view_tokens)

    return PageRules(page)


def _vision_operators(sizes: Llama4Architecture, values: Variables) -> list[Operator]:
    views = values["views"]
    return [*vit_operators(sizes.vision, views), *linears_operators(sizes.adapter, views * sizes.view_tokens)]


def _see(model: Any, page: Mapping[str, Any]) -> None:
    features = model.get_image_features(**page).last_hidden_state
    model.get_submodule(_PROJECTOR)(features.view(-1, features.shape[-1]))


def _projector_inputs(model: Any, sizes: Llama4Architecture, workload: Workload) -> tuple[Any, ...]:
    return (empty(model, views_of(workload) * sizes.view_tokens, sizes.adapter_width),)


FAMILY = vision_language_family(
    name="llama4",
    title="Llama 4: tiles through a vision transformer, chunked attention, mixtures of experts",
    model_types=("llama4",),
    sizes=Llama4Architecture,
    read=_read,
    rules=_rules,
    stages=(
        page_stage(
            name="vit",
            title="vision transformer and the layers that merge its patches, every view",
            modules=(_VISION,),
            operators=_vision_operators,
            parameters=lambda sizes: vit_parameters(sizes.vision) + linears_parameters(sizes.adapter),
            calls=VIEWS,
            inputs=square_pixels,
        ),
        projector_stage(
            lambda sizes: [LinearSize(sizes.adapter_width, sizes.decoder.hidden)],
            modules=(_PROJECTOR,),
            inputs=_projector_inputs,
            calls=VIEWS,
            rows=lambda sizes, values: values["views"] * sizes.view_tokens,
        ),
    ),
    language=DecoderModules("language_model.model", "language_model.lm_head"),
    pages=Pages(square_pixels, values=True, see=_see),
    # Its begin, its end, one before the whole page, and one behind each tile. Source: ``processing_llama4.py``.
    tags=lambda sizes, views: 3 + views.local_views,
    shipped=("llama-4-scout",),
    notes=(
        "a page becomes the tiles that it fits best",
        *TEXT.notes,
    ),
)
