"""Pages of published models become what the processors of transformers make of them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processor_functions import functions_of, views_of_minicpm
from transformers import (
    GotOcr2ImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.image_utils import ChannelDimension, SizeDict
from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import (
    DeepseekOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.deepseek_ocr2.processing_deepseek_ocr2 import DeepseekOcr2Processor
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import (
    get_optimal_tiled_canvas as get_optimal_tiled_canvas_of_mllama,
)
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import smart_resize as smart_resize_of_paddle
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_of_videos
from transformers.models.unlimited_ocr.processing_unlimited_ocr import UnlimitedOcrProcessor

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier
from stagemeter.core.errors import StagemeterError
from stagemeter.models.families import families
from stagemeter.models.lookup import describe_model
from stagemeter.models.pages.pixel_limits import PixelLimits, resized_between
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import tile_grid

FAMILIES = families()


def published(name):
    """Return the sizes of a shipped model."""
    return describe_model(name).architecture


def views_of(family, sizes, width, height):
    return family.rules(sizes, ProcessorSettings()).page(width, height)


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 14))
def test_tiles_of_internvl_are_its_processors(width, height, most):
    processor = GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=most)
    views = processor.get_number_of_image_patches(height, width, {"patch_size": {"height": 448, "width": 448}})
    columns, rows = tile_grid(width, height, 448, most)
    assert views == (columns * rows + 1 if columns * rows > 1 else 1)


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([3136, 12845056]))
def test_pages_of_qwen_are_resized_as_its_processors_do(width, height, most):
    vision = published("qwen2-vl-7b").vision
    limits = PixelLimits(vision.min_pixels, most)
    try:
        rows, columns = smart_resize(height, width, 28, vision.min_pixels, most)
    except ValueError:
        with pytest.raises(StagemeterError, match="more than 200 times the other"):
            resized_between(limits, vision.block, width, height)
    else:
        assert resized_between(limits, vision.block, width, height) == (columns, rows)


def test_image_tokens_of_qwen():
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 16384})
    later = Qwen2VLImageProcessorPil(size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16)
    for model in ("qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"):
        processor = later if model.startswith("qwen3") else processor
        for width, height in [(28, 28), (1654, 2339), (2339, 1654), (20, 3000), (9000, 8000)]:
            workload = plan_request(AnalysisConfig(image_w=width, image_h=height), describe_model(model))
            assert workload.image_tokens == processor.get_number_of_image_patches(height, width, {}) // 4


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_pages_of_gemma_4_are_resized_as_its_processor_does(width, height):
    model = describe_model("gemma-4-e2b")
    try:
        rows, columns = get_aspect_ratio_preserving_size(height, width, 16, 280 * 9, 3)
    except ValueError:
        with pytest.raises(StagemeterError, match="this model's processor refuses it"):
            views_of(model.family, model.architecture, width, height)
    else:
        view = views_of(model.family, model.architecture, width, height)
        assert (view.width, view.height, view.image_tokens) == (columns, rows, rows * columns // 48**2)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_tiles_of_mllama_are_those_of_its_processor(width, height):
    model = describe_model("llama-3.2-11b-vision")
    view = views_of(model.family, model.architecture, width, height)
    rows, columns = (side // 560 for side in get_optimal_tiled_canvas_of_mllama(height, width, 4, 560))
    assert (view.global_views, view.tile_grid) == (rows * columns, (columns, rows))


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_pages_of_minicpm_are_cut_as_its_processor_does(width, height):
    model = describe_model("minicpm-ocr-default")
    view, views = views_of(model.family, model.architecture, width, height), views_of_minicpm(width, height, 16, False)
    assert (view.width, view.height) == views[0]
    assert view.local_views == len(views) - 1
    assert view.image_tokens == sum(columns * rows // 32**2 for columns, rows in views)


@given(st.integers(2, 900), st.integers(1, 5000), st.integers(1, 5000))
def test_videos_of_qwen_3_are_resized_as_its_processor_does(frames, width, height):
    family, sizes = FAMILIES["qwen3-vl"], published("qwen3-vl-8b")
    try:
        rows, columns = smart_resize_of_videos(
            frames, height, width, temporal_factor=2, factor=32, min_pixels=4096, max_pixels=25_165_824
        )
    except ValueError:
        with pytest.raises(StagemeterError, match="more than 200 times the other"):
            family.rules(sizes, ProcessorSettings()).video(frames, width, height)
    else:
        view = family.rules(sizes, ProcessorSettings()).video(frames, width, height)
        assert (view.width, view.height) == (columns, rows)
        assert view.global_views == math.ceil(frames / 2)
        assert view.image_tokens == view.global_views * rows * columns // 32**2


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_pages_of_glm_are_resized_as_their_processors_do(width, height):
    size = {"shortest_edge": 12_544, "longest_edge": 9_633_792}
    for name, processor in (("glm-4.5v", Glm4vImageProcessorPil), ("glm-ocr", Glm46VImageProcessorPil)):
        model = describe_model(name)
        try:
            patches = processor(size=size).get_number_of_image_patches(height, width, {})
        except ValueError:
            with pytest.raises(StagemeterError, match="more than 200 times the other"):
                views_of(model.family, model.architecture, width, height)
        else:
            assert views_of(model.family, model.architecture, width, height).image_tokens == patches // 4


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_tiles_of_unlimited_ocr_are_those_of_its_processor(width, height):
    _, grid_of = functions_of("unlimited_ocr", ["get_all_supported_aspect_ratios", "get_optimal_tiled_canvas"])
    columns, rows = grid_of((height, width), (640, 640), 2, 32)
    tiles = columns * rows if max(width, height) > 640 else 0
    view = views_of(FAMILIES["unlimited-ocr"], published("unlimited-ocr-default"), width, height)
    assert (view.global_views, view.local_views, view.width, view.tile_side) == (1, tiles, 1024, 640)
    placeholders = SimpleNamespace(
        image_processor=SimpleNamespace(size={"height": 1024, "width": 1024}, tile_size=640),
        patch_size=16,
        downsample_ratio=4,
        image_token="x",
    )
    page = {"patches_grid": [(columns, rows)], "num_local_patches": [tiles]}
    assert view.image_tokens == len(UnlimitedOcrProcessor.replace_image_token(placeholders, page, 0))


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_tiles_of_llama_4_are_those_of_its_processor(width, height):
    _, resolutions_of, fit_of = functions_of("llama4", ["get_factors", "find_supported_resolutions", "get_best_fit"])
    rows, columns = fit_of((height, width), torch.tensor(resolutions_of(16, SizeDict(height=336, width=336)))) // 336
    view = views_of(FAMILIES["llama4"], published("llama-4-scout"), width, height)
    assert view.tile_grid == (columns, rows)
    assert view.local_views == (columns * rows if columns * rows > 1 else 0)
    assert view.image_tokens == 144 * (1 + view.local_views)


def test_window_of_unlimited_ocr_is_for_what_was_generated():
    model = describe_model("unlimited-ocr-default")
    cost = {}
    for new_tokens in (100, 129, 300, 301):
        config = AnalysisConfig(new_tokens=new_tokens, decode_context=913 + new_tokens - 1)
        workload = plan_request(config, model)
        cost[new_tokens] = analytic_tier(model.family, model.architecture, workload).stages["decode"].cost
        held = model.family.decoder(model.architecture).kv_cache_elements(workload, 913 + new_tokens - 1)
        # Keys and values of 10 heads of 128 in 12 layers.
        assert held == 12 * 2 * 1280 * (913 + min(new_tokens - 1, 127))
    assert cost[100].macs < cost[129].macs == cost[300].macs == cost[301].macs


def test_frames_of_qwen_2_are_resized_as_pages_are():
    for name in ("qwen2-vl-7b", "qwen2.5-vl-7b"):
        model = describe_model(name)
        page = plan_request(AnalysisConfig(image_w=641, image_h=357), model)
        for frames in (2, 3, 4, 15):
            video = plan_request(AnalysisConfig(image_w=641, image_h=357, video_frames=frames), model)
            assert video.view_size == page.view_size
            assert video.global_views == math.ceil(frames / 2)
            assert video.image_tokens == video.global_views * page.image_tokens
        # Two frames are the work of one page, which is doubled.
        pair = plan_request(AnalysisConfig(image_w=641, image_h=357, video_frames=2), model)
        assert pair.hash == page.hash != video.hash


@pytest.mark.parametrize("name", ["deepseek-ocr", "gemma-3-4b", "qwen3-8b"])
def test_models_without_videos_refuse_them(name):
    with pytest.raises(StagemeterError, match=rf"video_frames 8: {name} reads no videos. The families .*leave"):
        plan_request(AnalysisConfig(video_frames=8), describe_model(name))


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([100, 1540]))
def test_pages_of_pixtral_are_resized_as_its_processor_does(width, height, longest):
    sizes = replace(published("mistral-small-3.1-24b"), longest_side=longest)
    rows, columns = get_resize_output_image_size(
        np.empty((height, width, 3)), (longest, longest), (28, 28), ChannelDimension.LAST
    )
    if rows and columns:
        view = views_of(FAMILIES["mistral3"], sizes, width, height)
        assert (view.width, view.height) == (columns, rows)
        assert view.image_tokens == rows * columns // 28**2
    else:
        with pytest.raises(StagemeterError, match="nothing left of its shorter side"):
            views_of(FAMILIES["mistral3"], sizes, width, height)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_pages_of_paddleocr_vl_are_resized_as_its_processor_does(width, height):
    sizes = published("paddleocr-vl")
    try:
        rows, columns = smart_resize_of_paddle(height, width, min_pixels=147_384, max_pixels=2_822_400)
    except ValueError:
        with pytest.raises(StagemeterError, match="more than 200 times the other"):
            views_of(FAMILIES["paddleocr-vl"], sizes, width, height)
    else:
        view = views_of(FAMILIES["paddleocr-vl"], sizes, width, height)
        assert (view.width, view.height, view.image_tokens) == (columns, rows, rows * columns // 28**2)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_pages_of_kimi_are_padded_as_its_processor_does(width, height):
    (navit_resize,) = functions_of("kimi_k25", ["navit_resize"])
    _, (rows, columns) = navit_resize(height, width, 14, 2, 16_384, 512)
    view = views_of(FAMILIES["kimi-k2.5"], published("kimi-k2.5"), width, height)
    assert (view.width, view.height) == (columns, rows)
    assert view.image_tokens == rows * columns // 28**2


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_tiles_of_deepseek_ocr_2_are_those_of_its_processor(width, height):
    view = views_of(FAMILIES["deepseek-ocr-2"], published("deepseek-ocr-2"), width, height)
    columns, rows = get_optimal_tiled_canvas((height, width), (768, 768), 2, 6)
    tiles = columns * rows if max(width, height) > 768 else 0
    assert (view.global_views, view.local_views) == (1, tiles)
    assert view.tile_grid == ((columns, rows) if tiles else (1, 1))


@pytest.mark.parametrize(("width", "height"), [(500, 700), (769, 300), (1654, 2339)])
def test_pages_of_deepseek_ocr_2_are_what_its_processor_makes(width, height):
    processor = object.__new__(DeepseekOcr2Processor)
    processor.image_processor = DeepseekOcr2ImageProcessorPil()
    processor.patch_size, processor.downsample_ratio, processor.image_token = 16, 4, "x"
    made = processor.image_processor(Image.new("RGB", (width, height)), return_tensors="pt")
    workload = plan_request(AnalysisConfig(image_w=width, image_h=height), describe_model("deepseek-ocr-2"))
    assert made["pixel_values"].shape[-2:] == (workload.base_size, workload.base_size)
    assert made["num_local_patches"].tolist() == [workload.local_views]
    if workload.local_views:
        assert made["pixel_values_local"].shape[-2:] == (workload.image_size, workload.image_size)
    assert workload.image_tokens == len(processor.replace_image_token(made, 0))


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_image_tokens_of_llava_next_are_its_processors(width, height):
    sizes = published("llava-1.6-mistral-7b")
    processor = object.__new__(LlavaNextProcessor)
    processor.image_processor = LlavaNextImageProcessorPil(image_grid_pinpoints=[list(c) for c in sizes.canvases])
    processor.patch_size, processor.num_additional_image_tokens = 14, 1
    view = views_of(FAMILIES["llava-next"], sizes, width, height)
    # Without the class token, which the default strategy drops.
    assert view.image_tokens == processor._get_number_of_features(height, width, 336, 336) - 1
    canvas = select_best_resolution((height, width), processor.image_processor.image_grid_pinpoints)
    assert view.tile_grid == (canvas[1] // 336, canvas[0] // 336)


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_image_tokens_of_llava_onevision_are_its_processors(width, height):
    sizes = published("llava-onevision-0.5b")
    processor = object.__new__(LlavaOnevisionProcessor)
    processor.image_processor = LlavaOnevisionImageProcessorPil()
    processor.num_image_tokens, processor.vision_aspect_ratio = 27**2, "anyres_max_9"
    view = views_of(FAMILIES["llava-next"], sizes, width, height)
    assert view.image_tokens == processor._get_number_of_features(height, width, 384, 384)


@pytest.mark.parametrize(("width", "height"), [(336, 336), (500, 1300), (1654, 2339)])
def test_views_of_llava_next_are_those_that_its_processor_makes(width, height):
    sizes = published("llava-1.6-mistral-7b")
    processor = LlavaNextImageProcessorPil(
        image_grid_pinpoints=[list(c) for c in sizes.canvases],
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
    )
    views = views_of(FAMILIES["llava-next"], sizes, width, height)
    pixels = processor(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
    assert pixels.shape[1:] == (views.global_views + views.local_views, 3, 336, 336)


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([364, 384, 512]))
def test_tiles_of_smolvlm_are_those_of_its_processor(width, height, side):
    processor = Idefics3ImageProcessorPil(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side})
    sizes = published("smolvlm-256m")
    views = views_of(FAMILIES["idefics3"], replace(sizes, vision=replace(sizes.vision, image_size=side)), width, height)
    number, rows, columns = processor.get_number_of_image_patches(height, width)
    assert (views.global_views + views.local_views, views.tile_grid) == (number, (columns, rows))


@pytest.mark.parametrize(("width", "height"), [(448, 448), (1654, 2339), (2339, 1654), (100, 3000), (31, 17)])
def test_image_tokens_of_internvl(width, height):
    described = describe_model("internvl3-1b")
    workload = plan_request(AnalysisConfig(image_w=width, image_h=height), described)
    processor = GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=12)
    views = processor.get_number_of_image_patches(height, width, {"patch_size": {"height": 448, "width": 448}})
    assert workload.global_views + workload.local_views == views
    assert workload.image_tokens == 256 * views
