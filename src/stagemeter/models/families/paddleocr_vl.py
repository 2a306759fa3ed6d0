"""PaddleOCR-VL: an encoder over pages at their own resolution, and a decoder like ERNIE 4.5's.

Source: transformers, ``modeling_paddleocr_vl.py``, ``image_processing_pil_paddleocr_vl.py``.
"""

from __future__ import annotations

import math

from stagemeter.errors import StagemeterError
from stagemeter.models.decoder import Layer
from stagemeter.models.interpolated_language import InterpolatedArchitecture, interpolated_family
from stagemeter.models.interpolated_vision import InterpolatedVision, interpolated_vision
from stagemeter.models.settings import Settings
from stagemeter.models.text import decoder, gated, grouped_query_attention
from stagemeter.models.vision_language import VisionLanguageModules, part

#: Pixels between which a page is resized, as the processor has it by default, and how long one may be.
_MIN_PIXELS, _MAX_PIXELS, _LONGEST_PAGE = 384**2, 1536**2, 200


def _read(settings: Settings) -> InterpolatedArchitecture:
    sizes, text = part(settings, "vision_config"), part(settings, "text_config")
    side = sizes.whole("image_size", 384) // sizes.whole("patch_size", 14)
    vision = interpolated_vision(sizes, sizes.whole("spatial_merge_size", 2), side**2)
    text.refuse("use_bias", True, "the decoder of PaddleOCR-VL has none")
    tied = settings.flag("tie_word_embeddings", default=True)
    said = Settings({"tie_word_embeddings": tied, **text.values}, text.source)
    layer = Layer(grouped_query_attention(said), gated(said), said.whole("num_hidden_layers"))
    return InterpolatedArchitecture(vision, decoder(said, [layer]))


def resized(vision: InterpolatedVision, width: int, height: int) -> tuple[int, int]:
    """Width and height that a page is resized to: whole tokens, within the limits, its shape kept as well as may be.

    Source: transformers, ``image_processing_pil_paddleocr_vl.py``, ``smart_resize``.

    Raises
    ------
    StagemeterError
        If one side is more than 200 times the other, which the processor refuses.
    """
    block, asked = vision.block, f"{width} x {height}"
    # A side that is shorter than a token is made as long, the other one in proportion.
    if height < block:
        width, height = round(width * block / height), block
    if width < block:
        width, height = block, round(height * block / width)
    if max(width, height) > _LONGEST_PAGE * min(width, height):
        raise StagemeterError(
            f"a page of {asked} pixels: this model takes none with one side more than {_LONGEST_PAGE} times the other"
        )
    columns, rows = (round(side / block) * block for side in (width, height))
    if columns * rows > _MAX_PIXELS:
        shrink = math.sqrt(width * height / _MAX_PIXELS)
        columns, rows = (max(block, math.floor(side / shrink / block) * block) for side in (width, height))
    elif columns * rows < _MIN_PIXELS:
        stretch = math.sqrt(_MIN_PIXELS / (width * height))
        columns, rows = (math.ceil(side * stretch / block) * block for side in (width, height))
    return columns, rows


FAMILY = interpolated_family(
    name="paddleocr-vl",
    title="PaddleOCR-VL: a page at its own resolution, a decoder like ERNIE 4.5's",
    model_types=("paddleocr_vl",),
    read=_read,
    resized=resized,
    modules=VisionLanguageModules("model.visual", "model.projector"),
    shipped={"paddleocr-vl": "paddleocr_vl.json"},
    page_by_page=True,
    notes=(
        f"pages are resized to between {_MIN_PIXELS:,} and {_MAX_PIXELS:,} pixels, as the processor does by default",
        "pages go through the projector one by one, as transformers runs it",
    ),
)
