"""PaddleOCR-VL: an encoder over pages at their own resolution, and a decoder like ERNIE 4.5's.

Source: transformers, ``modeling_paddleocr_vl.py``, ``image_processing_pil_paddleocr_vl.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.families import text_settings
from stagemeter.models.families.kimi_k25 import MoonViTArchitecture, moonvit_family
from stagemeter.models.family import Note
from stagemeter.models.pages.pixel_limits import read_pixel_limits, resized_between
from stagemeter.models.pages.settings import PageSettings
from stagemeter.models.settings import Settings
from stagemeter.models.vision.merging import MoonViT, moonvit

#: Limits of a page's pixels: of ``preprocessor_config.json`` of PaddlePaddle/PaddleOCR-VL, as
#: candle-examples/examples/paddleocr-vl/main.rs of huggingface/candle quotes it, and of transformers' class.
_PUBLISHED_PIXELS, _PIXELS_OF_CLASS = (147_384, 2_822_400), (384**2, 1536**2)


def _read(settings: Settings) -> MoonViTArchitecture:
    sizes, text = settings.part("vision_config"), text_settings(settings)
    side = sizes.whole("image_size") // sizes.whole("patch_size")
    vision = moonvit(sizes, sizes.whole("spatial_merge_size"), side**2)
    text.refuse("use_bias", True, "the decoder of PaddleOCR-VL has none")
    layer = Layer(GroupedQueryAttention.read(text), GatedFeedForward.read(text), text.whole("num_hidden_layers"))
    return MoonViTArchitecture(vision, Decoder.read(text, [layer]))


def _resizing(vision: MoonViT, image: PageSettings) -> Callable[[int, int], tuple[int, int]]:
    """Return a function that resizes a page to whole tokens; it first enlarges a side shorter than a token.

    Source: transformers, ``image_processing_pil_paddleocr_vl.py``, ``smart_resize``.
    """
    image.require("temporal_patch_size", needed=1)
    limits, block = read_pixel_limits(image, _PUBLISHED_PIXELS, _PIXELS_OF_CLASS), vision.block

    def resized(width: int, height: int) -> tuple[int, int]:
        if limits.resizes and height < block:
            width, height = round(width * block / height), block
        if limits.resizes and width < block:
            width, height = block, round(height * block / width)
        return resized_between(limits, block, width, height)

    return resized


FAMILY = moonvit_family(
    name="paddleocr-vl",
    title="PaddleOCR-VL: a page at its own resolution, a decoder like ERNIE 4.5's",
    model_types=("paddleocr_vl",),
    read=_read,
    resizing=_resizing,
    encoder="model.visual",
    projector="model.projector",
    shipped=("paddleocr-vl",),
    page_by_page=True,
    # ``<|IMAGE_START|>`` and ``<|IMAGE_END|>``, which the chat template writes, and not the processor. Source: vLLM
    # 0.32, ``paddleocr_vl.py``, line 945; ``processing_paddleocr_vl.py``, ``replace_image_token``.
    tags=2,
    notes=(
        Note(
            "transformers runs the projector page by page",
            applies=lambda decoder, workload: workload.batch_size * workload.pages > 1,
        ),
    ),
)
