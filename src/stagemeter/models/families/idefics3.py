"""Idefics 3 and SmolVLM: tiles and the whole page through SigLIP, some patches to a token, a decoder like Llama's.

Source: transformers, ``modeling_idefics3.py``, ``modeling_smolvlm.py``, ``image_processing_pil_idefics3.py``.
"""

from __future__ import annotations

import math
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import square_encoder, square_projector, views_of
from stagemeter.models.builders.vision_language import Pages, VisionLanguageArchitecture, vision_language_family
from stagemeter.models.decoder.stages import DecoderModules
from stagemeter.models.families import text_decoder
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import tiles_beside_page
from stagemeter.models.settings import Settings
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.projector import Projector
from stagemeter.models.vision.vit import vision_transformer

#: Longer side of a page over the side of a view in the published processors.
_LONGEST = 4
#: Side of a view that transformers' class gives a file without one.
_SIDE_OF_CLASS = 364
#: Longest side of a page in pixels: ``MAX_IMAGE_SIZE``.
_LONGEST_SIDE = 4096


def _read(settings: Settings) -> VisionLanguageArchitecture:
    decoder = text_decoder(settings)
    vision = vision_transformer(settings.part("vision_config"))
    factor = settings.whole("scale_factor")
    if vision.side % factor:
        raise StagemeterError(
            f"{settings.source}: scale_factor is {factor}. It must divide the {vision.side} patches per side of a view"
        )
    projector = Projector(vision.hidden * factor**2, decoder.hidden, (vision.side // factor) ** 2, layers=1, bias=False)
    return VisionLanguageArchitecture(vision, projector, decoder)


def _rules(sizes: VisionLanguageArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page, resized to whole tiles, becomes these and a view of the whole, or only the latter."""
    image, side, tokens = settings.image, sizes.vision.image_size, sizes.projector.tokens
    image.side("max_image_size", published=side, default=_SIDE_OF_CLASS, needed=side)
    settings.whole.require("image_seq_len", needed=tokens, why="a view becomes")
    splits = image.flag("do_image_splitting", published=True)
    resizes = image.flag("do_resize", published=True)
    fixed: tuple[int, int] | None = None
    longest = _LONGEST * side
    if resizes and image.has("size.height") and not image.has("size.longest_edge"):
        fixed = image.number("size.width", published=side), image.number("size.height", published=side)
    elif resizes:
        longest = image.number("size.longest_edge", published=longest, default=4 * _SIDE_OF_CLASS)

    def page(width: int, height: int) -> PageViews:
        columns, rows = 1, 1
        if splits:
            size = (fixed or resized(width, height, longest)) if resizes else (width, height)
            columns, rows = whole_tiles(*size, side)
        if not columns * rows:
            raise StagemeterError(
                f"a page of {width} x {height} pixels: resized to tiles of {side} pixels, nothing is left of its "
                "shorter side, and this model's processor fails. Cut the page"
            )
        return tiles_beside_page((columns, rows), side, tokens)

    return PageRules(page)


def resized(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return the width and height of a page, resized to a longer side; the shorter side is an even number.

    Source: transformers, ``image_processing_pil_idefics3.py``, ``get_resize_output_image_size``.
    """
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        width, height = int(longest * ratio), longest
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    ratio = width / height
    if width >= height and width > _LONGEST_SIDE:
        width, height = _LONGEST_SIDE, int(_LONGEST_SIDE / ratio)
    elif height > width and height > _LONGEST_SIDE:
        width, height = int(_LONGEST_SIDE * ratio), _LONGEST_SIDE
    return max(width, 1), max(height, 1)


def whole_tiles(width: int, height: int, side: int) -> tuple[int, int]:
    """Return columns and rows: whole tiles along the longer side, as many as needed along the other.

    Source: transformers, ``image_processing_pil_idefics3.py``, ``resize_for_vision_encoder``.
    """
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / side)
        return columns, math.ceil(int(columns * side / ratio) / side)
    rows = math.ceil(height / side)
    return math.ceil(int(rows * side * ratio) / side), rows


def _tags(sizes: VisionLanguageArchitecture, views: PageViews) -> int:
    """Return the tokens around the views of a page.

    Two are before each tile, a line break behind each row of tiles, a second one behind all of them, and three around
    the whole page. Line breaks beside each other are one token. Source: transformers, ``processing_idefics3.py``,
    ``_prompt_split_image``.
    """
    return 3 + (2 * views.local_views + views.tile_grid[1] if views.local_views else 0)


def _page(model: Any, sizes: VisionLanguageArchitecture, workload: Workload) -> dict[str, Any]:
    """Return pixels other than zeros, which would be padding: all views of a request side by side."""
    import torch

    side, views = sizes.vision.image_size, views_of(workload) // workload.batch_size
    shape = (workload.batch_size, views, CHANNELS, side, side)
    # One expanded element: its value is known for any batch.
    return {
        "pixel_values": torch.ones((), dtype=model.dtype, device=model.device).expand(shape),
        "pixel_attention_mask": torch.ones((), dtype=torch.bool, device=model.device).expand(*shape[:2], side, side),
    }


FAMILY = vision_language_family(
    name="idefics3",
    title="Idefics 3, SmolVLM, Granite-Docling: tiles and the whole page through SigLIP, some patches to a token",
    model_types=("idefics3", "smolvlm"),
    sizes=VisionLanguageArchitecture,
    read=_read,
    rules=_rules,
    stages=(
        square_encoder("model.vision_model"),
        square_projector("model.connector", shape=lambda sizes: (sizes.vision.tokens, sizes.vision.hidden)),
    ),
    pages=Pages(_page, values=True),
    tags=_tags,
    language=DecoderModules("model.text_model"),
    shipped=("smolvlm-256m", "granite-docling-258m"),
    notes=("what the processor writes around the tokens of a tile counts as text",),
)
