"""DeepSeek-OCR: stages, closed forms and inputs. Its sizes are in `stagemeter.models.deepseek_ocr_config`.

The model is built from transformers' ``unlimited_ocr``, which is the same architecture; transformers has no
``deepseek_ocr`` of its own. The one difference is a patch embedding of CLIP's that the checkpoint holds and nothing
uses: its parameters are counted here and marked unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stagemeter.cost import Cost
from stagemeter.models.blocks import linear, working_set
from stagemeter.models.build import build_without_weights
from stagemeter.models.decoder import Decoder
from stagemeter.models.decoder_stages import DecoderModules, decoder_stages, empty, whole_pass
from stagemeter.models.deepseek_ocr_config import (
    NAME,
    SHIPPED,
    DeepseekOCRArchitecture,
    architecture_from_config,
    architecture_from_sizes,
    is_deepseek_ocr,
    transformers_config,
)
from stagemeter.models.family import CacheRecorder, Family, Stage, StageParameters, Variables
from stagemeter.models.vision import (
    ViewGroup,
    clip_cost,
    clip_parameters,
    clip_working_set,
    sam_cost,
    sam_parameters,
    sam_working_set,
)
from stagemeter.workload import Workload

if TYPE_CHECKING:
    import torch

_SAM = "model.vision_tower.sam_encoder"
_CLIP = "model.vision_tower.vision_encoder"
_PROJECTOR = "model.multi_modal_projector"
_DECODER = "model.language_model"
_HEAD = "lm_head"
#: The stages that run inside of the first forward pass, before its prefill, and the module that each is.
VISION_MODULES = {"sam": _SAM, "clip": _CLIP, "projector": _PROJECTOR}
#: What the modules that hold a layer's experts are named; they are called with the experts that each token chose.
EXPERTS_MODULE = ".mlp.experts"


def view_groups(architecture: DeepseekOCRArchitecture, workload: Workload) -> list[ViewGroup]:
    """The groups of equal views that pass through the encoders: global views, and local ones if there are any."""
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
    # The sizes say all; the official checkpoint's configuration is none that transformers knows.
    return build_without_weights(transformers_config(architecture))


def _sam_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    return sam_cost(architecture.sam, ViewGroup(**variables))


def _clip_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    return clip_cost(architecture.clip, ViewGroup(**variables))


def _projector_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    group = ViewGroup(**variables)
    rows = group.views * group.quarter_grid**2
    return linear(rows, architecture.projector_inputs, architecture.decoder.hidden, bias=True)


def _sam_working_set(architecture: DeepseekOCRArchitecture, variables: Variables) -> int:
    return sam_working_set(architecture.sam, ViewGroup(**variables))


def _clip_working_set(architecture: DeepseekOCRArchitecture, variables: Variables) -> int:
    return clip_working_set(architecture.clip, ViewGroup(**variables))


def _projector_working_set(architecture: DeepseekOCRArchitecture, variables: Variables) -> int:
    return working_set([(_projector_cost(architecture, variables), 1)])


def _sam_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    parameters = sam_parameters(architecture.sam)
    return StageParameters(total=parameters, active=parameters)


def _clip_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    parameters, unused = clip_parameters(architecture.clip), architecture.clip.unused_parameters
    return StageParameters(total=parameters, active=parameters - unused, unused=unused)


def _projector_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    parameters = (architecture.projector_inputs + 1) * architecture.decoder.hidden
    return StageParameters(total=parameters, active=parameters)


def _other_parameters(architecture: DeepseekOCRArchitecture) -> dict[str, int]:
    hidden = architecture.decoder.hidden
    return {"image_newline": hidden, "view_separator": hidden}


def _run_sam(model: Any, architecture: DeepseekOCRArchitecture, workload: Workload, recorder: CacheRecorder) -> None:
    for pixels in page_pixels(model, workload):
        model.get_submodule(_SAM)(pixels)


def _run_clip(model: Any, architecture: DeepseekOCRArchitecture, workload: Workload, recorder: CacheRecorder) -> None:
    for views, side, channels in _feature_maps(model, workload):
        model.get_submodule(_CLIP)(empty(model, views, channels, side, side))


def _run_projector(
    model: Any, architecture: DeepseekOCRArchitecture, workload: Workload, recorder: CacheRecorder
) -> None:
    width = model.get_submodule(_PROJECTOR).in_features
    for views, side, _ in _feature_maps(model, workload):
        model.get_submodule(_PROJECTOR)(empty(model, views, side * side, width))


def _run_whole_forward(
    model: Any, architecture: DeepseekOCRArchitecture, workload: Workload, recorder: CacheRecorder
) -> None:
    """One pass of the whole model over the prompt, as ``generate`` makes it first."""
    pixels = page_pixels(model, workload)
    page: dict[str, Any] = {"pixel_values": pixels[0]}
    if workload.local_views:
        page["pixel_values_local"] = pixels[1]
        page["num_local_patches"] = [workload.local_views] * workload.batch_size
        page["patches_grid"] = [list(workload.tile_grid)] * workload.batch_size
    if workload.prompt_tokens < workload.image_tokens:
        # The length was set by hand, and the image does not fit in: both halves of the pass, one after the other.
        model.model.get_image_features(**page)
        page = {}
    _run_whole(model, architecture, workload, recorder, workload.prompt_tokens, 0, page)


def _run_whole_decode(
    model: Any, architecture: DeepseekOCRArchitecture, workload: Workload, recorder: CacheRecorder
) -> None:
    """One pass of the whole model over one new token."""
    _run_whole(model, architecture, workload, recorder, 1, workload.decode_context - 1, {})


def _run_whole(
    model: Any,
    architecture: DeepseekOCRArchitecture,
    workload: Workload,
    recorder: CacheRecorder,
    tokens: int,
    cached: int,
    page: Mapping[str, Any],
) -> None:
    decoder = language_model(architecture)
    whole_pass(model, decoder, workload.batch_size, tokens, cached, recorder, page, keeps_everything=True)


def page_pixels(model: Any, workload: Workload) -> list[torch.Tensor]:
    """Empty pixels of a batch of pages, global views first, on the model's device.

    Returns
    -------
    list of torch.Tensor
        One tensor of shape ``(views, 3, side, side)`` per group of views.
    """
    groups = [(workload.global_views, workload.base_size), (workload.local_views, workload.image_size)]
    return [empty(model, workload.batch_size * views, 3, side, side) for views, side in groups if views]


def _feature_maps(model: Any, workload: Workload) -> list[tuple[int, int, int]]:
    """Views, side and channels of SAM's feature maps."""
    sam = model.config.vision_config.sam_config
    shapes = []
    for pixels in page_pixels(model, workload):
        group = ViewGroup.of(pixels.shape[0], pixels.shape[-1], sam.patch_size, sam.window_size)
        shapes.append((group.views, group.quarter_grid, sam.downsample_channels[-1]))
    return shapes


def language_model(architecture: DeepseekOCRArchitecture) -> Decoder:
    """The decoder of an architecture."""
    return architecture.decoder.decoder


_VIEW_VARIABLES = {
    "views": "views of one size that pass through together: batch times global views, or batch times local views",
    "side": "side of a view in pixels: base_size for global views, image_size for local ones",
    "grid": "side // patch_size, patches per side",
    "padded_grid": "grid rounded up to a multiple of window_size",
    "half_grid": "grid / 2 rounded up",
    "quarter_grid": "half_grid / 2 rounded up, tokens per side",
}

FAMILY: Family[DeepseekOCRArchitecture] = Family(
    name=NAME,
    title="DeepSeek-OCR: SAM and CLIP encoders, mixture-of-experts decoder",
    reads_pages=True,
    views=None,
    takes=is_deepseek_ocr,
    architecture_from_config=architecture_from_config,
    build=_build,
    shipped=SHIPPED,
    decoder=language_model,
    stages=(
        Stage(
            name="sam",
            title="SAM encoder, every view",
            modules=(_SAM,),
            owns=(_SAM,),
            parameters=_sam_parameters,
            variables=_VIEW_VARIABLES,
            calls=_view_calls,
            cost=_sam_cost,
            working_set=_sam_working_set,
            run=_run_sam,
        ),
        Stage(
            name="clip",
            title="CLIP encoder over SAM's feature maps, every view",
            modules=(_CLIP,),
            owns=(_CLIP,),
            parameters=_clip_parameters,
            variables=_VIEW_VARIABLES,
            calls=_view_calls,
            cost=_clip_cost,
            working_set=_clip_working_set,
            run=_run_clip,
        ),
        Stage(
            name="projector",
            title="projection of the features to the decoder's width",
            modules=(_PROJECTOR,),
            owns=(_PROJECTOR,),
            parameters=_projector_parameters,
            variables=_VIEW_VARIABLES,
            calls=_view_calls,
            cost=_projector_cost,
            working_set=_projector_working_set,
            run=_run_projector,
        ),
        *decoder_stages(language_model, DecoderModules(_DECODER, _HEAD), keeps_everything=True),
    ),
    other_parameters=_other_parameters,
    architecture_from_sizes=architecture_from_sizes,
    whole_passes={"forward": _run_whole_forward, "decode": _run_whole_decode},
)
