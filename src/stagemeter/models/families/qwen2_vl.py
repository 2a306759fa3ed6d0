"""Qwen 2-VL and 2.5-VL: a page at its own resolution, four patches to a token, a decoder like Qwen 2's.

Qwen 2.5-VL attends within windows in most layers of its encoder. Source: transformers, ``modeling_qwen2_vl.py``,
``modeling_qwen2_5_vl.py``, ``image_processing_pil_qwen2_vl.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import patch_encoder, patches_of_view, projector_stage, view_size
from stagemeter.models.builders.page_stages import Calls, batches_of_pages, image_tokens_of
from stagemeter.models.builders.vision_language import Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.families import text_decoder
from stagemeter.models.family import Family, Note, Variables
from stagemeter.models.page_views import PageRules
from stagemeter.models.pages.patches import VideoProcessor, page_and_video_rules
from stagemeter.models.pages.sampling import FrameSampling
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.merging import QwenVision, merger_norms, qwen_vision, window_pairs

_VISION = "model.visual"
_MERGER, _DEEP_MERGERS = f"{_VISION}.merger", f"{_VISION}.deepstack_merger_list"
_WINDOWED = "qwen2_5_vl"
#: Limits of a page's pixels in the published processors (``preprocessor_config.json``).
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 14 * 14 * 4 * 16384
#: Limits hold for each frame. Source: transformers, ``video_processing_qwen2_vl.py``.
_BY_FRAME = VideoProcessor(
    (128 * 28 * 28, 28 * 28 * 768),
    patch_size=14,
    tokens=128_000,
    together=False,
    sampling=FrameSampling(samples=False, fps=None, whole_patches=True),
)


@dataclass(frozen=True, slots=True)
class QwenVLArchitecture(Sizes):
    """Sizes of the encoder and the language model."""

    vision: QwenVision
    decoder: Decoder


def qwen_vl_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], QwenVLArchitecture],
    shipped: Sequence[str],
    notes: Sequence[str | Note],
    positions: bool = False,
    deep: bool = False,
    videos: VideoProcessor = _BY_FRAME,
    **options: Any,
) -> Family[QwenVLArchitecture]:
    """Make a family of Qwen-VL's kind.

    `positions` tells whether the encoder learns positions, `deep` whether patches of several layers are merged, for the
    decoder's first layers. For the other arguments, see `vision_language_family`.
    """

    def rules(sizes: QwenVLArchitecture, settings: ProcessorSettings) -> PageRules:
        vision = sizes.vision
        return page_and_video_rules(settings, vision.patches, (vision.min_pixels, vision.max_pixels), videos)

    parts = ("patch_embed", *(("pos_embed",) if positions else ()), "blocks")
    return vision_language_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=QwenVLArchitecture,
        read=read,
        rules=rules,
        stages=(
            patch_encoder(tuple(f"{_VISION}.{part}" for part in parts), run=_run_vision, calls=_CALLS),
            projector_stage(
                lambda sizes: sizes.vision.merger(sizes.vision.outputs) * (1 + sizes.vision.deep_mergers),
                name="merger",
                title="neighbouring patches merged to tokens of the decoder's width",
                modules=(_MERGER, _DEEP_MERGERS) if deep else (_MERGER,),
                norms=lambda sizes: merger_norms(sizes.vision),
                run=_run_merger,
            ),
        ),
        pages=Pages(_page, values=positions),
        shipped=shipped,
        notes=notes,
        videos=True,
        # ``<|vision_start|>`` and ``<|vision_end|>``, which the chat template writes, and not the processor. Source:
        # vLLM 0.32, ``qwen2_vl.py``, line 1396, ``qwen3_vl.py``, line 1980; ``replace_image_token`` of both processors.
        tags=lambda sizes, views: 2,
        **options,
    )


def decoder_of_type(settings: Settings, model_type: str) -> Decoder:
    """Read the language model as one of a type, regardless of the configuration's ``model_type``."""
    text = {**settings.part("text_config").values, "model_type": model_type}
    return text_decoder(Settings({**settings.values, "text_config": text}, settings.source))


def _read(settings: Settings) -> QwenVLArchitecture:
    decoder = decoder_of_type(settings, "qwen2")
    sizes, windowed = settings.part("vision_config"), settings.values["model_type"] == _WINDOWED
    width, layers = "hidden_size" if windowed else "embed_dim", sizes.whole("depth")
    full = sizes.indices("fullatt_block_indexes") if windowed else range(layers)
    between = sizes.whole("intermediate_size") if windowed else sizes.whole(width) * sizes.whole("mlp_ratio")
    vision = qwen_vision(
        sizes,
        decoder.hidden,
        (_MIN_PIXELS, _MAX_PIXELS),
        width=width,
        outputs="out_hidden_size" if windowed else "hidden_size",
        window_size=sizes.whole("window_size") if windowed else 0,
        full_layers=len({index for index in full if index < layers}),
        intermediate=between,
        gated=windowed,
        norm_bias=not windowed,
    )
    return QwenVLArchitecture(vision, decoder)


def _calls(sizes: QwenVLArchitecture, workload: Workload) -> list[Variables]:
    return [
        {
            "views": workload.batch_size * workload.global_views,
            "patches": patches_of_view(sizes.vision.patch_size, workload),
            "pairs": window_pairs(sizes.vision, *view_size(workload)),
        }
    ]


_CALLS = Calls(
    {
        "views": "batch_size * global_views: pages, or pairs of frames of videos",
        "patches": "patches of one view",
        "pairs": "pairs of patches within the windows of one view; 0 without windows",
    },
    _calls,
    page_by_page=True,
)


def _inputs(model: Any, sizes: QwenVLArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the encoder's arguments; positions of patches are computed on the CPU."""
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_window_index

    vision, grids = sizes.vision, []
    for one in batches_of_pages(workload):
        width, height = view_size(one)
        grids += [[one.global_views, height // vision.patch_size, width // vision.patch_size]] * one.batch_size
    grid = torch.tensor(grids)
    patches = image_tokens_of(workload) * vision.merge_size**2
    inputs = {
        "pixel_values": empty(model, patches, vision.vit.patch_elements),
        "grid_thw": grid,
        "position_ids": torch.zeros(patches, 2, dtype=torch.long, device=model.device),
    }
    if vision.positions:
        places, weights = get_vision_interpolation_indices_and_weights(
            grid, math.isqrt(vision.positions), align_corners=True, spatial_merge_size=vision.merge_size
        )
        inputs |= {"interp_indices": places.to(model.device), "interp_weights": weights.to(model.device)}
    if vision.window_size:
        index, lengths = get_vision_window_index(grid, vision.merge_size, vision.window_size, vision.patch_size)
        inputs |= {"window_index": index.to(model.device), "cu_window_seqlens": lengths}
    return inputs


def _page(model: Any, sizes: QwenVLArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the whole model's arguments, named after pages or videos."""
    kind, pixels = ("image", "pixel_values") if workload.video_frames is None else ("video", "pixel_values_videos")
    inputs = _inputs(model, sizes, workload)
    return {pixels if name == "pixel_values" else f"{kind}_{name}": value for name, value in inputs.items()}


def _run_vision(model: Any, sizes: QwenVLArchitecture, workload: Workload) -> None:
    inputs = _inputs(model, sizes, workload)
    model.get_submodule(_VISION)(inputs.pop("pixel_values"), **inputs)


def _run_merger(model: Any, sizes: QwenVLArchitecture, workload: Workload) -> None:
    patches = image_tokens_of(workload) * sizes.vision.merge_size**2
    deep = model.get_submodule(_DEEP_MERGERS) if sizes.vision.deep_mergers else []
    for merger in (model.get_submodule(_MERGER), *deep):
        merger(empty(model, patches, sizes.vision.hidden))


#: Notes on patches that span two pictures.
PATCH_NOTES = (
    Note(
        "a patch spans two pictures: a single page counts twice",
        applies=lambda decoder, workload: workload.video_frames is None,
    ),
    Note(
        "a patch spans two pictures: an odd last frame counts twice",
        applies=lambda decoder, workload: (workload.video_frames or 0) % 2 == 1,
    ),
)

FAMILY = qwen_vl_family(
    name="qwen2-vl",
    title="Qwen 2-VL and 2.5-VL: a page at its own resolution, four patches to a token",
    model_types=("qwen2_vl", _WINDOWED),
    read=_read,
    shipped=("qwen2-vl-7b", "qwen2.5-vl-7b"),
    notes=PATCH_NOTES,
)
