"""What transformers' processors make of a page's width and height, for each shipped model that reads pages.

Sizes are computed by the processors' own functions, without pixels. A function returns image tokens, or None where the
processor refuses a page or fails. Of Llama 3.2 Vision, which attends to its page besides the prompt, it returns tiles.
"""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch
from processor_functions import functions_of, views_of_minicpm
from transformers import GotOcr2ImageProcessor, LlavaNextProcessor, LlavaOnevisionProcessor
from transformers.image_utils import ChannelDimension, SizeDict
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import get_optimal_tiled_canvas
from transformers.models.deepseek_ocr2.processing_deepseek_ocr2 import DeepseekOcr2Processor
from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import (
    get_optimal_tiled_canvas as get_optimal_tiled_canvas_of_mllama,
)
from transformers.models.nougat.image_processing_pil_nougat import NougatImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import smart_resize as smart_resize_of_paddle
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.unlimited_ocr.processing_unlimited_ocr import UnlimitedOcrProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

Tokens = Callable[[int, int], int | None]


def _by_patches(processor, per_token: int) -> Tokens:
    def tokens(width: int, height: int) -> int | None:
        try:
            return processor.get_number_of_image_patches(height, width, {}) // per_token
        except (ValueError, ZeroDivisionError):
            return None

    return tokens


def _qwen(patch_size: int, least: int, most: int) -> Tokens:
    size = {"shortest_edge": least, "longest_edge": most}
    return _by_patches(Qwen2VLImageProcessorPil(size=size, patch_size=patch_size), 4)


def _glm(kind: type) -> Tokens:
    return _by_patches(kind(size={"shortest_edge": 12_544, "longest_edge": 9_633_792}), 4)


def _internvl(most: int, side: int = 448) -> Tokens:
    processor = GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=most)
    views = {"patch_size": {"height": side, "width": side}}
    return lambda width, height: 256 * processor.get_number_of_image_patches(height, width, views)


def _idefics(longest: int) -> Tokens:
    processor = Idefics3ImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": 512})

    def tokens(width: int, height: int) -> int | None:
        try:
            number, rows, columns = processor.get_number_of_image_patches(height, width)
        except (ValueError, ZeroDivisionError):
            return None
        # A grid without a row cannot be cut.
        return 64 * number if rows * columns else None

    return tokens


def _unlimited(most: int) -> Tokens:
    _, grid_of = functions_of("unlimited_ocr", ["get_all_supported_aspect_ratios", "get_optimal_tiled_canvas"])
    placeholders = SimpleNamespace(
        image_processor=SimpleNamespace(size={"height": 1024, "width": 1024}, tile_size=640),
        patch_size=16,
        downsample_ratio=4,
        image_token="x",
    )

    def tokens(width: int, height: int) -> int:
        columns, rows = grid_of((height, width), (640, 640), 2, most)
        tiles = columns * rows if max(width, height) > 640 else 0
        page = {"patches_grid": [(columns, rows)], "num_local_patches": [tiles]}
        return len(UnlimitedOcrProcessor.replace_image_token(placeholders, page, 0))

    return tokens


def _deepseek_2(width: int, height: int) -> int:
    processor = object.__new__(DeepseekOcr2Processor)
    processor.image_processor = SimpleNamespace(size={"height": 1024, "width": 1024}, tile_size=768)
    processor.patch_size, processor.downsample_ratio, processor.image_token = 16, 4, "x"
    columns, rows = get_optimal_tiled_canvas((height, width), (768, 768), 2, 6)
    tiles = columns * rows if max(width, height) > 768 else 0
    return len(processor.replace_image_token({"num_local_patches": [tiles]}, 0))


def _gemma_4(width: int, height: int) -> int | None:
    try:
        rows, columns = get_aspect_ratio_preserving_size(height, width, 16, 280 * 9, 3)
    except ValueError:
        return None
    return rows * columns // 48**2


def _gemma_3_crops(width: int, height: int) -> int:
    """Return tokens with crops of an array whose elements are one and the same."""
    page = np.broadcast_to(np.zeros((), np.uint8), (3, height, width))
    return 256 * (1 + len(Gemma3ImageProcessorPil().pan_and_scan(page, 256, 4, 1.2)))


def _kimi(width: int, height: int) -> int:
    (navit_resize,) = functions_of("kimi_k25", ["navit_resize"])
    _, (rows, columns) = navit_resize(height, width, 14, 2, 16_384, 512)
    return rows * columns // 28**2


def _pixtral(longest: int, block: int = 28) -> Tokens:
    def tokens(width: int, height: int) -> int | None:
        page = np.broadcast_to(np.zeros(()), (height, width, 3))
        rows, columns = get_resize_output_image_size(page, (longest, longest), (block, block), ChannelDimension.LAST)
        return rows * columns // 28**2 or None

    return tokens


def _llama_4(width: int, height: int) -> int:
    fit_of, resolutions = _resolutions_of_llama_4()
    rows, columns = fit_of((height, width), resolutions) // 336
    tiles = int(columns * rows)
    return 144 * (1 + tiles if tiles > 1 else 1)


@cache
def _resolutions_of_llama_4():
    _, resolutions_of, fit_of = functions_of("llama4", ["get_factors", "find_supported_resolutions", "get_best_fit"])
    return fit_of, torch.tensor(resolutions_of(16, SizeDict(height=336, width=336)))


def _mllama(width: int, height: int) -> int:
    rows, columns = get_optimal_tiled_canvas_of_mllama(height, width, 4, 560)
    return rows * columns // 560**2


def _llava_next(width: int, height: int) -> int:
    processor = object.__new__(LlavaNextProcessor)
    processor.image_processor = LlavaNextImageProcessorPil()
    processor.patch_size, processor.num_additional_image_tokens = 14, 1
    # Without the class token, which the default strategy drops.
    return processor._get_number_of_features(height, width, 336, 336) - 1


@cache
def _onevision():
    processor = object.__new__(LlavaOnevisionProcessor)
    processor.image_processor = LlavaOnevisionImageProcessorPil()
    processor.num_image_tokens, processor.vision_aspect_ratio = 27**2, "anyres_max_9"
    return processor


def _llava_onevision(width: int, height: int) -> int:
    return _onevision()._get_number_of_features(height, width, 384, 384)


def _minicpm(width: int, height: int) -> int:
    return sum(columns * rows // 32**2 for columns, rows in views_of_minicpm(width, height, 16, False))


def _paddle(width: int, height: int) -> int | None:
    try:
        rows, columns = smart_resize_of_paddle(height, width, min_pixels=147_384, max_pixels=2_822_400)
    except (ValueError, ZeroDivisionError):
        return None
    return rows * columns // 28**2


def _one_view(tokens: int) -> Tokens:
    return lambda width, height: tokens


#: Published models under settings of a file or a request.
UNDER_SETTINGS: dict[str, tuple[dict[str, object], dict[str, int], Tokens]] = {
    "deepseek-ocr": ({}, {"max_tiles": 6}, _unlimited(6)),
    "gemma-3-4b": ({"do_pan_and_scan": True, "size": 896}, {}, _gemma_3_crops),
    "got-ocr2": ({"crop_to_patches": True, "size": 1024, "max_patches": 9}, {}, _internvl(9, 1024)),
    "internvl3-1b": ({}, {"max_tiles": 40}, _internvl(40)),
    "qwen2.5-vl-7b": ({}, {"min_pixels": 200_704, "max_pixels": 1_003_520}, _qwen(14, 200_704, 1_003_520)),
    "qwen3-vl-8b": ({}, {"max_pixels": 1_048_576}, _qwen(16, 65_536, 1_048_576)),
}

#: Real processors of models whose pages all become one view, with the sizes of the published files.
ONE_VIEW = {
    "donut-base": lambda: DonutImageProcessorPil(size={"height": 2560, "width": 1920}),
    "nougat-base": lambda: NougatImageProcessorPil(size={"height": 896, "width": 672}),
    "llava-1.5-7b": lambda: CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "florence-2-base": lambda: CLIPImageProcessorPil(size={"height": 768, "width": 768}, do_center_crop=False),
    "paligemma-3b": lambda: SiglipImageProcessorPil(size={"height": 224, "width": 224}),
    "trocr-base": lambda: ViTImageProcessorPil(size={"height": 384, "width": 384}),
    "gemma-3-4b": lambda: Gemma3ImageProcessorPil(size={"height": 896, "width": 896}),
    "got-ocr2": lambda: GotOcr2ImageProcessorPil(size={"height": 1024, "width": 1024}, crop_to_patches=False),
}

#: Published limits stand here again, and not by way of the package.
TOKENS: dict[str, Tokens] = {
    "deepseek-ocr": _unlimited(9),
    "deepseek-ocr-2": _deepseek_2,
    "donut-base": _one_view(80 * 60),
    "florence-2-base": _one_view(24**2 + 1),
    "gemma-3-4b": _one_view(256),
    "gemma-4-e2b": _gemma_4,
    "glm-4.1v-9b": _glm(Glm4vImageProcessorPil),
    "glm-4.5v": _glm(Glm4vImageProcessorPil),
    "glm-ocr": _glm(Glm46VImageProcessorPil),
    "got-ocr2": _one_view(256),
    "granite-docling-258m": _idefics(2048),
    "internvl3-1b": _internvl(12),
    "kimi-k2.5": _kimi,
    "lighton-ocr-default": _pixtral(1540),
    "llama-3.2-11b-vision": _mllama,
    "llama-4-scout": _llama_4,
    "llava-1.5-7b": _one_view(576),
    "llava-1.6-mistral-7b": _llava_next,
    "llava-onevision-0.5b": _llava_onevision,
    "minicpm-ocr-default": _minicpm,
    "mistral-small-3.1-24b": _pixtral(1540),
    "nougat-base": _one_view(28 * 21),
    "paddleocr-vl": _paddle,
    "paligemma-3b": _one_view(256),
    "qianfan-ocr-default": _internvl(12),
    "qwen2-vl-7b": _qwen(14, 3136, 12_845_056),
    "qwen2.5-vl-7b": _qwen(14, 3136, 12_845_056),
    "qwen3-vl-8b": _qwen(16, 65_536, 16_777_216),
    "qwen3.5-27b": _qwen(16, 65_536, 16_777_216),
    "smolvlm-256m": _idefics(2048),
    "trocr-base": _one_view(577),
    "unlimited-ocr-default": _unlimited(32),
}
