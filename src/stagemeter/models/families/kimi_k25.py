"""Kimi K2.5: MoonViT over pages at their own resolution, and a decoder like DeepSeek-V3's.

Source: transformers, ``modeling_kimi_k25.py``, ``image_processing_kimi_k25.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from stagemeter.models.builders.vision_language import VISION
from stagemeter.models.families import text_decoder
from stagemeter.models.families.paddleocr_vl import MoonViTArchitecture, moonvit_family
from stagemeter.models.pages.pixel_limits import whole_blocks
from stagemeter.models.pages.settings import MOST_PIXELS, PageSettings
from stagemeter.models.settings import Settings
from stagemeter.models.vision.moonvit import MoonViT, moonvit, require_width

#: Most patches of a page, and along one side, by default.
_MOST_PATCHES, _MOST_PER_SIDE = 16_384, 512


def _read(settings: Settings) -> MoonViTArchitecture:
    sizes, decoder = settings.part("vision_config"), text_decoder(settings)
    merging = sizes.values["merge_kernel_size"]
    if not isinstance(merging, (list, tuple)) or len(merging) != 2 or merging[0] != merging[1]:
        sizes.refuse("merge_kernel_size", merging, "this family merges as many patches down as across")
    merge_size = Settings({"merge_kernel_size": merging[0]}, sizes.source).whole("merge_kernel_size")
    positions = sizes.whole("pos_emb_height") * sizes.whole("pos_emb_width")
    vision = moonvit(sizes, merge_size, positions)
    require_width(settings, "projection_hidden_size", vision.hidden)
    return MoonViTArchitecture(vision, decoder)


def _resizing(vision: MoonViT, image: PageSettings) -> Callable[[int, int], tuple[int, int]]:
    """Read how a page is shrunk to a number of patches and padded to whole tokens.

    Source: transformers, ``image_processing_kimi_k25.py``, ``navit_resize``. The published file has the
    limits under other names, within ``media_proc_cfg``.
    """
    most = image.number("max_patches", "media_proc_cfg.in_patch_limit", published=_MOST_PATCHES, most=MOST_PIXELS)
    per_side = image.side("size", "media_proc_cfg.patch_limit_on_one_side", published=_MOST_PER_SIDE)
    image.require("media_proc_cfg.fixed_output_tokens", needed=None, why="this family counts pages of any number:")
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
    shipped={"kimi-k2.5": "kimi_k2_5.json"},
    page_by_page=False,
    notes=(
        "latent attention is counted as transformers runs it: each pass expands the compressed vectors of the whole "
        "context",
        "videos are not counted",
    ),
)
