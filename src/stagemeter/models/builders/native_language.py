"""Families whose encoder takes a page at its own resolution, merges patches to tokens, and hands them to a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.builders.page_family import page_family
from stagemeter.models.builders.page_stages import page_stage, page_tokens
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import empty
from stagemeter.models.family import Family, PageRules, PageViews, Variables
from stagemeter.models.pages.pixel_limits import PixelLimits, read_pixel_limits
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.native_vision import (
    NativeVision,
    merger_operators,
    merger_parameters,
    native_operators,
    native_parameters,
    patches_of,
    require_encoder,
    resized,
    resized_together,
    window_pairs,
)

_VISION = "model.visual"
_EMBEDDING, _BLOCKS, _MERGER = f"{_VISION}.patch_embed", f"{_VISION}.blocks", f"{_VISION}.merger"
_POSITIONS, _DEEP_MERGERS = f"{_VISION}.pos_embed", f"{_VISION}.deepstack_merger_list"


#: Sizes and pixels that transformers' ``Qwen2VLImageProcessor`` gives a file that leaves them out.
_OF_IMAGES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
_PIXELS_OF_IMAGES = 56 * 56, 28 * 28 * 1280


@dataclass(frozen=True, slots=True)
class VideoProcessor:
    """How a video processor resizes frames.

    Attributes
    ----------
    pixels : tuple of int
        Pixels between which transformers' class resizes, where a file leaves them out.
    patch_size : int
        Side of a patch in pixels, where a file leaves it out.
    tokens : int
        ``max_video_tokens``, where a file leaves it out.
    together : bool
        Whether the limits are of all frames together, or of each.
    published : tuple of int or None
        Pixels without a file; None: those of pages.
    """

    pixels: tuple[int, int]
    patch_size: int
    tokens: int
    together: bool
    published: tuple[int, int] | None = None


#: Source: transformers, ``video_processing_qwen2_vl.py``, which bounds each frame.
BY_FRAME = VideoProcessor((128 * 28 * 28, 28 * 28 * 768), patch_size=14, tokens=128_000, together=False)


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
    videos: VideoProcessor = BY_FRAME,
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
        See `stagemeter.models.decoder.stages.decoder_stages`.
    videos : VideoProcessor
        How frames of videos are resized.
    """
    modules = (_EMBEDDING, _POSITIONS, _BLOCKS) if positions else (_EMBEDDING, _BLOCKS)
    mergers = (_MERGER, _DEEP_MERGERS) if deep else (_MERGER,)
    return page_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=NativeArchitecture,
        read=lambda settings: read(settings.values, settings.source),
        rules=partial(_rules, videos),
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
        videos=True,
    )


def _rules(videos: VideoProcessor, sizes: NativeArchitecture, settings: ProcessorSettings) -> PageRules:
    """Views of pages and of videos.

    A video is seen in views of as many frames as a patch spans; its last frame is repeated where they do not fill it.
    Source: transformers, ``video_processing_qwen2_vl.py`` and ``video_processing_qwen3_vl.py``, ``patchify``.
    """
    vision, image = sizes.vision, settings.image
    require_encoder(vision, image, _OF_IMAGES)
    limits = read_pixel_limits(image, (vision.min_pixels, vision.max_pixels), _PIXELS_OF_IMAGES)

    def video(frames: int, width: int, height: int) -> PageViews:
        bounds = _video_limits(videos, vision, settings.video, limits, frames)
        size = (resized_together if videos.together else _resized_by_frame)(vision, frames, width, height, bounds)
        return _views(vision, -(-frames // vision.temporal_patch_size), size)

    return PageRules(lambda width, height: _views(vision, 1, resized(vision, width, height, limits)), video)


def _resized_by_frame(
    vision: NativeVision, frames: int, width: int, height: int, limits: PixelLimits
) -> tuple[int, int]:
    return resized(vision, width, height, limits)


def _video_limits(
    videos: VideoProcessor, vision: NativeVision, settings: PageSettings, of_pages: PixelLimits, frames: int
) -> PixelLimits:
    """Pixels between which the frames of a video are resized.

    Source: transformers, ``video_processing_qwen2_vl.py`` and ``video_processing_qwen3_vl.py``, ``resize``.
    """
    require_encoder(vision, settings, {**_OF_IMAGES, "patch_size": videos.patch_size})
    published = videos.published or (of_pages.least, of_pages.most)
    limits = read_pixel_limits(settings, published, videos.pixels, top_level=not videos.together)
    if not settings.flag("cap_pixels_per_frame", published=False):
        return limits
    tokens = settings.number("max_video_tokens", published=videos.tokens, most=2**31)
    least = int(limits.least * 1.05)
    if videos.together:
        most = max(min(tokens * vision.block**2, limits.most // frames), least) * frames
    else:
        budget = int(tokens * vision.block**2 * 0.9)
        most = max(min(limits.most, budget * vision.temporal_patch_size // frames), least)
    return PixelLimits(limits.least, most, limits.resizes)


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
