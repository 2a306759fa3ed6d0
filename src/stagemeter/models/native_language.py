"""Families whose encoder takes a page at its own resolution, merges patches to tokens, and hands them to a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from stagemeter.models.decoder import Decoder
from stagemeter.models.decoder_stages import empty
from stagemeter.models.family import Family, PageViews, Variables
from stagemeter.models.native_vision import (
    NativeVision,
    merger_operators,
    merger_parameters,
    native_operators,
    native_parameters,
    patches_of,
    resized,
    resized_together,
    window_pairs,
)
from stagemeter.models.page_family import page_family
from stagemeter.models.page_stages import page_stage, page_tokens
from stagemeter.models.sizes import Sizes
from stagemeter.workload import Workload

_VISION = "model.visual"
_EMBEDDING, _BLOCKS, _MERGER = f"{_VISION}.patch_embed", f"{_VISION}.blocks", f"{_VISION}.merger"
_POSITIONS, _DEEP_MERGERS = f"{_VISION}.pos_embed", f"{_VISION}.deepstack_merger_list"


@dataclass(frozen=True, slots=True)
class NativeArchitecture(Sizes):
    """Sizes of an encoder at native resolution and a language model.

    Attributes
    ----------
    vision : NativeVision
        The encoder.
    decoder : Decoder
        The language model.
    """

    vision: NativeVision
    decoder: Decoder


def native_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Mapping[str, Any], str], NativeArchitecture],
    shipped: Mapping[str, str],
    notes: Sequence[str] = (),
    deep: bool = False,
    positions: bool = False,
    prefill_variables: Mapping[str, str] = MappingProxyType({}),
    video_pixels: tuple[int, int] | None = None,
) -> Family[NativeArchitecture]:
    """Make a family of models whose encoder takes a page at its own resolution.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    model_types : sequence of str
        ``model_type`` of the configurations that it takes.
    read : callable
        Reads the sizes from a configuration; the second argument says where it is from.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : sequence of str
        What one should know about how its numbers come about.
    deep, positions : bool
        Whether patches of several layers are merged and handed to the decoder's first ones; whether positions are
        learned.
    prefill_variables : mapping
        See `stagemeter.models.decoder_stages.decoder_stages`.
    video_pixels : tuple of int or None
        Pixels between which all frames of a video together are resized; None where each is resized as a page is.
    """
    modules = (_EMBEDDING, _POSITIONS, _BLOCKS) if positions else (_EMBEDDING, _BLOCKS)
    mergers = (_MERGER, _DEEP_MERGERS) if deep else (_MERGER,)
    return page_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=NativeArchitecture,
        read=lambda settings: read(settings.values, settings.source),
        views=_page_views,
        stages=(
            page_stage(
                name="vit",
                title="vision transformer over the patches of the page",
                modules=modules,
                operators=lambda sizes, values: native_operators(sizes.vision, **values),
                parameters=lambda sizes: native_parameters(sizes.vision),
                variables={
                    "views": "batch_size * global_views: pages, or pairs of frames of videos",
                    "patches": "patches of one view",
                    "pairs": "pairs of patches within the windows of one view; 0 without windows",
                },
                calls=_calls,
                run=_run_vision,
            ),
            page_stage(
                name="merger",
                title="neighbouring patches merged to tokens of the decoder's width",
                modules=mergers,
                operators=lambda sizes, values: merger_operators(sizes.vision, **values),
                parameters=lambda sizes: merger_parameters(sizes.vision),
                variables={"tokens": "batch_size * image_tokens"},
                calls=lambda sizes, workload: [{"tokens": workload.batch_size * workload.image_tokens}],
                run=_run_merger,
            ),
        ),
        language="model.language_model",
        page=_named_page,
        shipped=shipped,
        notes=notes,
        valued=positions,
        prefill_variables=prefill_variables,
        video=partial(_video_views, video_pixels),
    )


def _page_views(sizes: NativeArchitecture, width: int, height: int) -> PageViews:
    return _views(sizes.vision, 1, resized(sizes.vision, width, height))


def _video_views(
    pixels: tuple[int, int] | None, sizes: NativeArchitecture, frames: int, width: int, height: int
) -> PageViews:
    """Views of a video, each of as many frames as a patch spans; its last frame is repeated where they do not fill it.

    Source: transformers, ``video_processing_qwen2_vl.py`` and ``video_processing_qwen3_vl.py``, ``patchify``.
    """
    vision = sizes.vision
    size = resized(vision, width, height) if pixels is None else resized_together(vision, frames, width, height, pixels)
    return _views(vision, -(-frames // vision.temporal_patch_size), size)


def _views(vision: NativeVision, views: int, size: tuple[int, int]) -> PageViews:
    return PageViews(views, 0, *size, (1, 1), views * patches_of(vision, *size) // vision.merge_size**2)


def _view_size(workload: Workload) -> tuple[int, int]:
    return workload.view_size or (workload.base_size, workload.base_size)


def _calls(sizes: NativeArchitecture, workload: Workload) -> list[Variables]:
    size = _view_size(workload)
    return [
        {
            "views": workload.batch_size * workload.global_views,
            "patches": patches_of(sizes.vision, *size),
            "pairs": window_pairs(sizes.vision, *size),
        }
    ]


def _page(model: Any, sizes: NativeArchitecture, workload: Workload) -> dict[str, Any]:
    """What the encoder takes of the pages of a batch; what says where patches are is worked out on the CPU."""
    import torch
    from transformers.vision_utils import (
        get_vision_interpolation_indices_and_weights,
        get_vision_window_index,
    )

    vision = sizes.vision
    width, height = _view_size(workload)
    views = workload.global_views
    grid = torch.tensor([[views, height // vision.patch_size, width // vision.patch_size]] * workload.batch_size)
    patches = workload.batch_size * views * patches_of(vision, width, height)
    page = {
        "pixel_values": empty(model, patches, vision.patch_elements),
        "grid_thw": grid,
        "position_ids": torch.zeros(patches, 2, dtype=torch.long, device=model.device),
    }
    if vision.positions:
        side = math.isqrt(vision.positions)
        places, weights = get_vision_interpolation_indices_and_weights(
            grid, side, align_corners=True, spatial_merge_size=vision.merge_size
        )
        page |= {"interp_indices": places.to(model.device), "interp_weights": weights.to(model.device)}
    if vision.window_size:
        index, lengths = get_vision_window_index(grid, vision.merge_size, vision.window_size, vision.patch_size)
        page |= {"window_index": index.to(model.device), "cu_window_seqlens": lengths}
    return page


def _named_page(model: Any, sizes: NativeArchitecture, workload: Workload) -> dict[str, Any]:
    """The same for the whole model, where what is the encoder's is named so."""
    page = _page(model, sizes, workload)
    kind, pixels = ("image", "pixel_values") if workload.video_frames is None else ("video", "pixel_values_videos")
    named = {pixels if name == "pixel_values" else f"{kind}_{name}": value for name, value in page.items()}
    if sizes.vision.positions and workload.prompt_tokens >= workload.image_tokens:
        named["input_ids"] = page_tokens(model, workload)
    return named


def _run_vision(model: Any, sizes: NativeArchitecture, workload: Workload) -> None:
    page = _page(model, sizes, workload)
    model.get_submodule(_VISION)(page.pop("pixel_values"), **page)


def _run_merger(model: Any, sizes: NativeArchitecture, workload: Workload) -> None:
    patches = workload.batch_size * workload.image_tokens * sizes.vision.merge_size**2
    mergers = [model.get_submodule(_MERGER)]
    if sizes.vision.deep_mergers:
        mergers += model.get_submodule(_DEEP_MERGERS)
    for merger in mergers:
        merger(empty(model, patches, sizes.vision.hidden))
