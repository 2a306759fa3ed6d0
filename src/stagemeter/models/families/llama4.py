"""Llama 4: tiles through a vision transformer whose patches are shuffled together, Llama 4's language model.

Source: transformers, ``modeling_llama4.py``, ``image_processing_llama4.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, linear
from stagemeter.models.builders.page_family import page_family
from stagemeter.models.builders.page_stages import page_stage, page_tokens
from stagemeter.models.builders.vision_language import part, text_decoder, vision_transformer
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import empty
from stagemeter.models.families.llama4_text import FAMILY as TEXT
from stagemeter.models.family import PageRules, PageViews, Variables
from stagemeter.models.pages.settings import MOST_TILES, ProcessorSettings
from stagemeter.models.pages.tiling import best_fit, tile_grids
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.sam import CHANNELS
from stagemeter.models.vision.vit import VisionTransformer, transformer_operators, transformer_parameters

_VISION, _PROJECTOR = "vision_model", "multi_modal_projector"
#: Most tiles that a page becomes, as the published processors have it (``preprocessor_config.json``).
_MOST_TILES = 16


@dataclass(frozen=True, slots=True)
class Llama4Architecture(Sizes):
    """Sizes of a model of this family.

    Attributes
    ----------
    vision : VisionTransformer
        The encoder of tiles.
    merge_size : int
        Patches per side that become one token.
    adapter_inputs, adapter_width : int
        Width of the patches of a token side by side, and of the two layers that they pass through.
    decoder : Decoder
        The language model.
    """

    vision: VisionTransformer
    merge_size: int
    adapter_inputs: int
    adapter_width: int
    decoder: Decoder

    @property
    def view_tokens(self) -> int:
        """Tokens of one view."""
        return (self.vision.side // self.merge_size) ** 2


def _read(settings: Settings) -> Llama4Architecture:
    sizes = part(settings, "vision_config")
    vision = vision_transformer(sizes, class_token=True, patch_bias=False, outer_norms=2)
    ratio = sizes.number("pixel_shuffle_ratio")
    merge = round(1 / ratio) if 1 / vision.side <= ratio <= 1 else 0
    inputs, width = sizes.whole("projector_input_dim"), sizes.whole("projector_output_dim")
    if not merge or vision.side % merge or merge * ratio != 1:
        raise StagemeterError(f"{sizes.source}: pixel_shuffle_ratio {ratio!r} does not divide {vision.side} patches")
    for name, given, needed in (
        ("intermediate_size", vision.intermediate, vision.hidden * merge**2),
        ("projector_input_dim", inputs, width),
        ("vision_output_dim", sizes.whole("vision_output_dim"), width),
    ):
        if given != needed:
            raise StagemeterError(f"{sizes.source}: {name} is {given}, and what it meets is {needed} wide")
    return Llama4Architecture(vision, merge, vision.hidden * merge**2, width, text_decoder(settings, tied_by_part=True))


def _rules(sizes: Llama4Architecture, settings: ProcessorSettings) -> PageRules:
    """A page becomes the tiles that it fits into best. Source: ``image_processing_llama4.py``, ``_preprocess``."""
    image, side = settings.image, sizes.vision.image_size
    image.side("size", published=side, default=336, needed=side)
    image.require("do_resize", needed=True, why="Llama 4's processor takes no other value than")
    most = image.number("max_patches", published=_MOST_TILES, most=MOST_TILES, option="max_tiles", name="max_tiles")
    largest = image.flag("resize_to_max_canvas", published=False)
    grids = tile_grids(most)

    def page(width: int, height: int) -> PageViews:
        columns, rows = best_fit(width, height, side, grids, single_precision=True, largest=largest)
        tiles = columns * rows
        # A page that is cut is seen as a whole, too.
        views = tiles + 1 if tiles > 1 else 1
        return PageViews(1, views - 1, side, side, (columns, rows), views * sizes.view_tokens)

    return PageRules(page)


def _vision_operators(sizes: Llama4Architecture, values: Variables) -> list[Operator]:
    rows = values["views"] * sizes.view_tokens
    inputs, width = sizes.adapter_inputs, sizes.adapter_width
    adapter = [linear(rows, inputs, width), linear(rows, width, width)]
    return [*transformer_operators(sizes.vision, values["views"]), *((operator, 1) for operator in adapter)]


def _vision_parameters(sizes: Llama4Architecture) -> int:
    adapter = (sizes.adapter_inputs + sizes.adapter_width) * sizes.adapter_width
    return transformer_parameters(sizes.vision) + adapter


def _projector_operators(sizes: Llama4Architecture, values: Variables) -> list[Operator]:
    return [(linear(values["views"] * sizes.view_tokens, sizes.adapter_width, sizes.decoder.hidden), 1)]


def _count(workload: Workload) -> int:
    return workload.batch_size * (workload.global_views + workload.local_views)


def _calls(sizes: Llama4Architecture, workload: Workload) -> list[Variables]:
    return [{"views": _count(workload)}]


def _pixels(model: Any, sizes: Llama4Architecture, workload: Workload) -> Any:
    side = sizes.vision.image_size
    return empty(model, _count(workload), CHANNELS, side, side)


def _page(model: Any, sizes: Llama4Architecture, workload: Workload) -> dict[str, Any]:
    page = {"pixel_values": _pixels(model, sizes, workload)}
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page


def _see(model: Any, page: Mapping[str, Any]) -> None:
    features = model.get_image_features(**page).last_hidden_state
    model.get_submodule(_PROJECTOR)(features.view(-1, features.shape[-1]))


def _run_projector(model: Any, sizes: Llama4Architecture, workload: Workload) -> None:
    model.get_submodule(_PROJECTOR)(empty(model, _count(workload) * sizes.view_tokens, sizes.adapter_width))


_VARIABLES = {"views": "views that pass through together: batch times views of a page"}

FAMILY = page_family(
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
            parameters=_vision_parameters,
            variables=_VARIABLES,
            calls=_calls,
            run=lambda model, sizes, workload: model.get_submodule(_VISION)(_pixels(model, sizes, workload)),
        ),
        page_stage(
            name="projector",
            title="projection of the features to the decoder's width",
            modules=(_PROJECTOR,),
            operators=_projector_operators,
            parameters=lambda sizes: sizes.adapter_width * sizes.decoder.hidden,
            variables=_VARIABLES,
            calls=_calls,
            run=_run_projector,
        ),
    ),
    language="language_model.model",
    head="language_model.lm_head",
    see=_see,
    page=_page,
    shipped={"llama-4-scout": "llama_4_scout.json"},
    notes=(
        "a page becomes the tiles that it fits into best",
        *TEXT.notes,
    ),
    valued=True,
)
