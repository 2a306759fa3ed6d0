"""DeepSeek-OCR: stages, closed forms and inputs.

transformers has no ``deepseek_ocr``, so the model is built as its ``unlimited_ocr``, of the same architecture. Only the
checkpoint holds CLIP's patch embedding, which nothing uses; its parameters are counted, and marked as unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, linear
from stagemeter.models.build import build_without_weights
from stagemeter.models.builders.page_stages import page_passes, page_stage
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import DecoderModules, decoder_stages, empty
from stagemeter.models.families.deepseek_ocr.configuration import (
    NAME,
    NAMES,
    SHIPPED,
    DeepseekOCRArchitecture,
    architecture_from_config,
    architecture_from_sizes,
    is_deepseek_ocr,
    transformers_config,
)
from stagemeter.models.families.deepseek_ocr.modes import DEFAULT_MODE, RESOLUTIONS
from stagemeter.models.families.deepseek_ocr.tiling import MAX_TILES, MIN_TILES, RECIPE_TILES, page_rule
from stagemeter.models.family import Family, PageRules, Variables
from stagemeter.models.pages.settings import PUBLISHED, ProcessorSettings
from stagemeter.models.pages.tiling import read_tile_limits
from stagemeter.models.vision.clip import clip_operators, clip_parameters
from stagemeter.models.vision.sam import (
    VIEW_VARIABLES,
    ViewGroup,
    sam_operators,
    sam_parameters,
)

if TYPE_CHECKING:
    import torch

_SAM = "model.vision_tower.sam_encoder"
_CLIP = "model.vision_tower.vision_encoder"
_PROJECTOR = "model.multi_modal_projector"
_DECODER = "model.language_model"
_HEAD = "lm_head"


def _rules(sizes: DeepseekOCRArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the views of a page in the resolution that the request asks for."""
    asked = settings.resolution or RESOLUTIONS[DEFAULT_MODE]
    patch, ratio = sizes.sam.patch_size, sizes.downsample_ratio
    for setting, given, actual in (
        ("patch_size", asked.patch_size, patch),
        ("downsample_ratio", asked.downsample_ratio, ratio),
    ):
        if given not in (None, actual):
            raise StagemeterError(f"{setting}: {given} is not this model's, which is {actual}; leave it out")
    if not asked.crop_mode and (most := settings.options.get("max_tiles")) is not None:
        raise StagemeterError(
            f"max_tiles: {most} means nothing in mode {asked.mode}, which cuts no tiles. Leave it out, or take a mode "
            "that does, such as gundam"
        )
    limits = read_tile_limits(settings.image, most=MAX_TILES, fewest=MIN_TILES)
    views = page_rule(asked.base_size, asked.image_size, asked.crop_mode, limits, patch, ratio, asked.mode)
    notes: tuple[str, ...] = ()
    if asked.crop_mode:
        origin = settings.image.limits["max_tiles"].origin
        notes = (f"a page is cut into at most {limits.most} tiles, as {origin} says",)
        if origin == PUBLISHED:
            notes = (
                f"a page is cut into at most {limits.most} tiles, as the authors' transformers code does; their vLLM "
                f"recipe cuts at most {RECIPE_TILES}: --max-tiles {RECIPE_TILES} counts that",
            )
    return PageRules(views, notes=notes)


def view_groups(architecture: DeepseekOCRArchitecture, workload: Workload) -> list[ViewGroup]:
    """Return the groups of equal views that pass through the encoders: global views, then tiles."""
    sides = [(workload.global_views, workload.base_size), (workload.local_views, workload.image_size)]
    sam = architecture.sam
    return [
        ViewGroup.of(workload.batch_size * views, side, sam.patch_size, sam.window_size)
        for views, side in sides
        if views
    ]


def _view_calls(architecture: DeepseekOCRArchitecture, workload: Workload) -> list[Variables]:
    return [asdict(group) for group in view_groups(architecture, workload)]


def _build(architecture: DeepseekOCRArchitecture, config: Mapping[str, Any]) -> Any:
    # transformers does not know the official checkpoint's configuration.
    return build_without_weights(transformers_config(architecture))


def _projector_operators(architecture: DeepseekOCRArchitecture, variables: Variables) -> list[Operator]:
    group = ViewGroup(**variables)
    rows = group.views * group.quarter_grid**2
    return [(linear(rows, architecture.projector_inputs, architecture.decoder.hidden, bias=True), 1)]


def _other_parameters(architecture: DeepseekOCRArchitecture) -> dict[str, int]:
    hidden = architecture.decoder.hidden
    return {"image_newline": hidden, "view_separator": hidden}


def _run_sam(model: Any, architecture: DeepseekOCRArchitecture, workload: Workload) -> None:
    for pixels in page_pixels(model, workload):
        model.get_submodule(_SAM)(pixels)


def _run_clip(model: Any, architecture: DeepseekOCRArchitecture, workload: Workload) -> None:
    for views, side, channels in _feature_maps(model, workload):
        model.get_submodule(_CLIP)(empty(model, views, channels, side, side))


def _run_projector(model: Any, architecture: DeepseekOCRArchitecture, workload: Workload) -> None:
    width = model.get_submodule(_PROJECTOR).in_features
    for views, side, _ in _feature_maps(model, workload):
        model.get_submodule(_PROJECTOR)(empty(model, views, side * side, width))


def page_inputs(model: Any, architecture: DeepseekOCRArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the arguments of the whole model for the pages of a batch."""
    pixels = page_pixels(model, workload)
    page: dict[str, Any] = {"pixel_values": pixels[0]}
    if workload.local_views:
        page["pixel_values_local"] = pixels[1]
        page["num_local_patches"] = [workload.local_views] * workload.batch_size
        page["patches_grid"] = [list(workload.tile_grid)] * workload.batch_size
    return page


def page_pixels(model: Any, workload: Workload) -> list[torch.Tensor]:
    """Return empty pixels of a batch of pages on the model's device: ``(views, 3, side, side)`` per group of views."""
    groups = [(workload.global_views, workload.base_size), (workload.local_views, workload.image_size)]
    return [empty(model, workload.batch_size * views, 3, side, side) for views, side in groups if views]


def _pixels(page: Any, workload: Workload) -> Mapping[str, torch.Tensor]:
    from stagemeter.models.families.deepseek_ocr.page import view_pixels

    return view_pixels(page, workload)


def _feature_maps(model: Any, workload: Workload) -> list[tuple[int, int, int]]:
    """Return views, side and channels of SAM's feature maps."""
    sam = model.config.vision_config.sam_config
    shapes = []
    for pixels in page_pixels(model, workload):
        group = ViewGroup.of(pixels.shape[0], pixels.shape[-1], sam.patch_size, sam.window_size)
        shapes.append((group.views, group.quarter_grid, sam.downsample_channels[-1]))
    return shapes


def language_model(architecture: DeepseekOCRArchitecture) -> Decoder:
    """Return the decoder of an architecture."""
    return architecture.decoder.decoder


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
        page_stage(
            name="sam",
            title="SAM encoder, every view",
            modules=(_SAM,),
            operators=lambda sizes, values: sam_operators(sizes.sam, ViewGroup(**values)),
            parameters=lambda sizes: sam_parameters(sizes.sam),
            variables=_VARIABLES,
            calls=_view_calls,
            run=_run_sam,
        ),
        page_stage(
            name="clip",
            title="CLIP encoder over SAM's feature maps, every view",
            modules=(_CLIP,),
            operators=lambda sizes, values: clip_operators(sizes.clip, ViewGroup(**values)),
            parameters=lambda sizes: clip_parameters(sizes.clip),
            variables=_VARIABLES,
            calls=_view_calls,
            run=_run_clip,
            unused=lambda sizes: sizes.clip.unused_parameters,
        ),
        page_stage(
            name="projector",
            title="projection of the features to the decoder's width",
            modules=(_PROJECTOR,),
            operators=_projector_operators,
            parameters=lambda sizes: (sizes.projector_inputs + 1) * sizes.decoder.hidden,
            variables=_VARIABLES,
            calls=_view_calls,
            run=_run_projector,
        ),
        *decoder_stages(language_model, DecoderModules(_DECODER, _HEAD), windows=False, keeps_everything=True),
    ),
    other_parameters=_other_parameters,
    architecture_from_sizes=architecture_from_sizes,
    whole_passes=page_passes(language_model, page_inputs, keeps_everything=True),
    pixels=_pixels,
)
