"""DeepSeek-OCR: stages, closed forms and inputs.

transformers has no ``deepseek_ocr``, so the model is built as its ``unlimited_ocr``, of the same architecture. Only the
checkpoint holds CLIP's patch embedding, which nothing uses; its parameters are counted, and marked as unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.notes import KeyNote
from stagemeter.core.workload import Workload
from stagemeter.models.build import build_without_weights
from stagemeter.models.builders.page_stages import batches_of_pages, page_passes
from stagemeter.models.builders.view_groups import group_projector, group_stage, sam_stage, tiled_pages
from stagemeter.models.builders.vision_language import LANGUAGE, VISION
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.decoder.stages import decoder_stages
from stagemeter.models.families.deepseek_ocr.architecture import DecoderArchitecture, DeepseekOCRArchitecture
from stagemeter.models.families.deepseek_ocr.configuration import (
    NAME,
    NAMES,
    SHIPPED,
    architecture_from_config,
    architecture_from_sizes,
    is_deepseek_ocr,
    transformers_config,
)
from stagemeter.models.families.deepseek_ocr.modes import DEFAULT_MODE, RESOLUTIONS
from stagemeter.models.families.deepseek_ocr.tiling import MAX_TILES, MIN_TILES, RECIPE_TILES, page_rule
from stagemeter.models.family import Family
from stagemeter.models.page_views import PageRules
from stagemeter.models.pages.settings import PUBLISHED, ProcessorSettings
from stagemeter.models.pages.tiling import read_tile_limits
from stagemeter.models.vision.sam import VIEW_VARIABLES, ViewGroup
from stagemeter.models.vision.vit import layer_operators, vit_parameters

if TYPE_CHECKING:
    import torch


def _rules(sizes: DeepseekOCRArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the views of a page in the resolution that the request asks for."""
    asked = settings.resolution or RESOLUTIONS[DEFAULT_MODE]
    patch, ratio = sizes.sam.patch_size, sizes.downsample_ratio
    for setting, given, actual in (
        ("patch_size", asked.patch_size, patch),
        ("downsample_ratio", asked.downsample_ratio, ratio),
    ):
        if given not in (None, actual):
            raise StagemeterError(f"{setting}: {given} is not this model's, which is {actual}. Leave it out")
    if not asked.crop_mode and (most := settings.options.get("max_tiles")) is not None:
        raise StagemeterError(
            f"max_tiles: {most} means nothing in mode {asked.mode}, which cuts no tiles. Leave it out, or take a mode "
            "that does, such as gundam"
        )
    limits = read_tile_limits(settings.image, most=MAX_TILES, fewest=MIN_TILES)
    views = page_rule(asked.base_size, asked.image_size, asked.crop_mode, limits, patch, ratio, asked.mode)
    if not asked.crop_mode:
        return PageRules(views, notes=lambda views: ())
    origin = settings.image.limits["max_tiles"].origin
    note = f"a page is cut into at most {limits.most} tiles, as {origin} says"
    if origin == PUBLISHED:
        note = (
            f"a page is cut into at most {limits.most} tiles, as the authors' transformers code does; their vLLM "
            f"recipe cuts at most {RECIPE_TILES}: --max-tiles {RECIPE_TILES} counts that"
        )
    return PageRules(
        views,
        notes=lambda views: (KeyNote(note) if origin != PUBLISHED or views.local_views > RECIPE_TILES else note,),
    )


def _build(architecture: DeepseekOCRArchitecture, config: Mapping[str, Any]) -> Any:
    # transformers does not know the official checkpoint's configuration.
    return build_without_weights(transformers_config(architecture))


def page_inputs(model: Any, architecture: DeepseekOCRArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the arguments of the whole model for the pages of a batch."""
    page = tiled_pages(model, architecture, workload)
    grids = [list(one.tile_grid) for one in batches_of_pages(workload) for _ in range(one.batch_size)]
    return page | {"patches_grid": grids} if "num_local_patches" in page else page


def _feature_maps(model: Any, architecture: DeepseekOCRArchitecture, group: ViewGroup) -> tuple[Any, ...]:
    side = group.quarter_grid
    return (empty(model, group.views, architecture.clip.hidden, side, side),)


def _pixels(page: Any, workload: Workload) -> Mapping[str, torch.Tensor]:
    from stagemeter.models.families.deepseek_ocr.page import view_pixels

    return view_pixels(page, workload)


def language_model(architecture: DeepseekOCRArchitecture) -> Decoder:
    """Return the decoder of an architecture."""
    return _layers(architecture.decoder)


@cache
def _layers(sizes: DecoderArchitecture) -> Decoder:
    return sizes.decoder


_VARIABLES = VIEW_VARIABLES | {
    "views": "views of one size that pass through together: batch times global views, or batch times local views",
    "side": "side of a view in pixels: base_size for global views, image_size for local ones",
}

FAMILY: Family[DeepseekOCRArchitecture] = Family(
    name=NAME,
    title="DeepSeek-OCR: SAM and CLIP encoders, mixture-of-experts decoder",
    rules=_rules,
    modes=RESOLUTIONS,
    model_types=NAMES,
    takes=is_deepseek_ocr,
    architecture_from_config=architecture_from_config,
    build=_build,
    shipped=SHIPPED,
    decoder=language_model,
    stages=(
        sam_stage(f"{VISION}.sam_encoder", _VARIABLES),
        group_stage(
            name="clip",
            title="CLIP encoder over SAM's feature maps, every view",
            module=f"{VISION}.vision_encoder",
            # A class token joins the feature map. Source: ``modeling_unlimited_ocr.py``, ``UnlimitedOcrVisionEncoder``.
            operators=lambda sizes, group: layer_operators(
                sizes.clip.vit, [(group.views, group.quarter_grid**2 + 1)], sizes.clip.layers
            ),
            parameters=lambda sizes: vit_parameters(sizes.clip.vit),
            inputs=_feature_maps,
            variables=_VARIABLES,
            unused=lambda sizes: sizes.clip.unused_parameters,
        ),
        group_projector(lambda sizes: sizes.projector, _VARIABLES),
        *decoder_stages(language_model, LANGUAGE, windows=False, keeps_everything=True),
    ),
    other_parameters=lambda sizes: dict.fromkeys(("image_newline", "view_separator"), sizes.decoder.hidden),
    architecture_from_sizes=architecture_from_sizes,
    whole_passes=page_passes(language_model, page_inputs, keeps_everything=True),
    pixels=_pixels,
)
