"""Kimi K2.5: MoonViT over pages at their own resolution, and a decoder like DeepSeek-V3's.

Source: transformers, ``modeling_kimi_k25.py``, ``image_processing_kimi_k25.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import patch_encoder, patch_grid, projector_stage
from stagemeter.models.builders.page_stages import Calls, batches_of_pages, image_tokens_of
from stagemeter.models.builders.vision_language import VISION, Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.families import text_decoder
from stagemeter.models.families.deepseek_v3 import LATENT_NOTE
from stagemeter.models.family import Family, Note, Variables
from stagemeter.models.page_views import PageRules
from stagemeter.models.pages.pixel_limits import whole_blocks
from stagemeter.models.pages.settings import MOST_PIXELS, PageSettings, ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.merging import MoonViT, moonvit
from stagemeter.models.vision.projector import require_width

#: Most patches of a page, and along one side, by default.
_MOST_PATCHES, _MOST_PER_SIDE = 16_384, 512


@dataclass(frozen=True, slots=True)
class MoonViTArchitecture(Sizes):
    """Sizes of the encoder and the language model."""

    vision: MoonViT
    decoder: Decoder


def moonvit_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], MoonViTArchitecture],
    resizing: Callable[[MoonViT, PageSettings], Callable[[int, int], tuple[int, int]]],
    encoder: str,
    projector: str,
    page_by_page: bool,
    tags: int,
    shipped: Sequence[str],
    notes: Sequence[str | Note] = (),
) -> Family[MoonViTArchitecture]:
    """Make a family of an encoder with interpolated positions, two layers that merge its patches, and a decoder.

    `resizing` returns a function that resizes a width and a height to whole tokens. With `page_by_page`, the projector
    runs once for each page, on patches as they come; else once for all, on patches that the encoder put side by side.
    `tags` are around the image tokens of each page.
    For the other arguments, see `vision_language_family`.
    """

    def rules(sizes: MoonViTArchitecture, settings: ProcessorSettings) -> PageRules:
        vision, image = sizes.vision, settings.image
        image.require("patch_size", "media_proc_cfg.patch_size", needed=vision.patch_size, default=14)
        image.require("merge_size", "media_proc_cfg.merge_kernel_size", needed=vision.merge_size, default=2)
        resize = resizing(vision, image)
        return PageRules(lambda width, height: vision.patches.views(1, resize(width, height)))

    def merging_calls(sizes: MoonViTArchitecture, workload: Workload) -> list[Variables]:
        if page_by_page:
            return [{"calls": one.batch_size, "tokens": one.image_tokens} for one in batches_of_pages(workload)]
        return [{"calls": 1, "tokens": image_tokens_of(workload)}]

    def run_encoder(model: Any, sizes: MoonViTArchitecture, workload: Workload) -> None:
        page = _page(model, sizes, workload)
        pixels = page["pixel_values"].unsqueeze(0) if page_by_page else page["pixel_values"]
        model.get_submodule(encoder)(pixels, grid_thw=page["image_grid_thw"])

    def merging_inputs(model: Any, sizes: MoonViTArchitecture, workload: Workload) -> tuple[Any, ...]:
        tokens, side_by_side = image_tokens_of(workload), sizes.vision.merge_size**2
        if page_by_page:
            grid = patch_grid(model, sizes.vision.patch_size, workload)
            return empty(model, tokens * side_by_side, sizes.vision.hidden), grid
        return (empty(model, tokens, side_by_side, sizes.vision.hidden),)

    return vision_language_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=MoonViTArchitecture,
        read=read,
        rules=rules,
        stages=(
            patch_encoder((encoder,), run=run_encoder),
            projector_stage(
                lambda sizes: sizes.vision.merger(sizes.decoder.hidden),
                inputs=merging_inputs,
                modules=(projector,),
                title="neighbouring patches merged to tokens of the decoder's width",
                calls=Calls({"calls": "times that it runs", "tokens": "tokens of one time"}, merging_calls),
                norms=lambda sizes: 2 * sizes.vision.hidden,
            ),
        ),
        pages=Pages(_page, values=True),
        tags=lambda sizes, views: tags,
        shipped=shipped,
        notes=notes,
    )


def _page(model: Any, sizes: MoonViTArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the patches of the pages of a batch, and their grids."""
    vision = sizes.vision
    patches = image_tokens_of(workload) * vision.merge_size**2
    return {
        "pixel_values": empty(model, patches, CHANNELS, vision.patch_size, vision.patch_size),
        "image_grid_thw": patch_grid(model, vision.patch_size, workload),
    }


def _read(settings: Settings) -> MoonViTArchitecture:
    sizes, decoder = settings.part("vision_config"), text_decoder(settings)
    merging = sizes.values["merge_kernel_size"]
    if not isinstance(merging, (list, tuple)) or len(merging) != 2 or merging[0] != merging[1]:
        sizes.refuse("merge_kernel_size", merging, "this family merges as many patches down as across")
    merge_size = Settings({"merge_kernel_size": merging[0]}, sizes.source).whole("merge_kernel_size")
    positions = sizes.whole("pos_emb_height") * sizes.whole("pos_emb_width")
    vision = moonvit(sizes, merge_size, positions)
    if settings.values.get("projection_hidden_size") is not None:
        require_width(settings, "projection_hidden_size", vision.hidden, "the encoder")
    return MoonViTArchitecture(vision, decoder)


def _resizing(vision: MoonViT, image: PageSettings) -> Callable[[int, int], tuple[int, int]]:
    """Return a function that shrinks a page to a number of patches and pads it to whole tokens.

    Source: transformers, ``image_processing_kimi_k25.py``, ``navit_resize``. The published file has the
    limits under other names, within ``media_proc_cfg``.
    """
    most = image.number("max_patches", "media_proc_cfg.in_patch_limit", published=_MOST_PATCHES, most=MOST_PIXELS)
    per_side = image.side("size", "media_proc_cfg.patch_limit_on_one_side", published=_MOST_PER_SIDE)
    image.require(
        "media_proc_cfg.fixed_output_tokens",
        needed=None,
        why="this family counts pages of any number of tokens, which is",
    )
    if not image.flag("do_resize", published=True):
        return lambda width, height: whole_blocks(vision.block, width, height)
    patch, longest = vision.patch_size, per_side * vision.patch_size

    def resized(width: int, height: int) -> tuple[int, int]:
        patches = max(1.0, height // patch) * max(1.0, width // patch)
        scale = min(1.0, math.sqrt(most / patches), longest / height, longest / width)
        sides = (min(max(1, int(side * scale)), longest) for side in (width, height))
        columns, rows = (math.ceil(side / vision.block) * vision.block for side in sides)
        return columns, rows

    return resized


FAMILY = moonvit_family(
    name="kimi-k2.5",
    title="Kimi K2.5: a page at its own resolution through MoonViT, a decoder like DeepSeek-V3's",
    model_types=("kimi_k25",),
    read=_read,
    resizing=_resizing,
    encoder=VISION,
    projector="model.mm_projector",
    shipped=("kimi-k2.5",),
    page_by_page=False,
    # ``<|media_begin|>image<|media_content|>`` and ``<|media_end|>``, which the chat template writes, and not the
    # processor. Source: vLLM 0.32, ``kimi_k25.py``, line 326; ``processing_kimi_k25.py``, ``replace_image_token``.
    tags=4,
    notes=(
        LATENT_NOTE,
        "videos are not counted",
    ),
)
