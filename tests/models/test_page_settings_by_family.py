"""Files of a processor make of a page what the processor of transformers does, family by family."""

from __future__ import annotations

import json
import math
from importlib import import_module

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from page_files import many, pil, sides, views
from PIL import Image
from processor_functions import functions_of
from transformers import (
    GotOcr2ImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
)
from transformers.image_utils import SizeDict

from stagemeter.core.errors import StagemeterError
from stagemeter.models.lookup import describe_model


@st.composite
def pixels(draw):
    """Draw limits of pixels in a spelling of older or newer files, and their values."""
    least, most = sorted(draw(st.tuples(st.integers(1, 3_000_000), st.integers(1, 3_000_000))))
    wrong = {"shortest_edge": 1, "longest_edge": 7}
    edges = {"shortest_edge": least, "longest_edge": most}
    spelled = draw(
        st.sampled_from(
            [
                {"min_pixels": least, "max_pixels": most},
                {"size": edges},
                {"min_pixels": least, "max_pixels": most, "size": wrong},
                {"min_pixels": least, "size": {**edges, "shortest_edge": 5}},
                {"max_pixels": most, "size": {**edges, "longest_edge": 5}},
                {"min_pixels": None, "max_pixels": None, "size": edges},
            ]
        )
    )
    return spelled, least, most


NATIVE = {
    "qwen2-vl-7b": ("qwen2_vl", "Qwen2VLImageProcessorPil", 14),
    "qwen2.5-vl-7b": ("qwen2_vl", "Qwen2VLImageProcessorPil", 14),
    "qwen3-vl-2b": ("qwen2_vl", "Qwen2VLImageProcessorPil", 16),
    "qwen3.5-27b": ("qwen2_vl", "Qwen2VLImageProcessorPil", 16),
    "paddleocr-vl": ("paddleocr_vl", "PaddleOCRVLImageProcessorPil", 14),
}


@pytest.mark.parametrize("name", NATIVE)
@many
@given(sides, sides, pixels())
def test_pixels_of_native_processors(name, width, height, limits):
    module, processor, patch = NATIVE[name]
    spelled, least, most = limits
    file = {"image_processor_type": processor, "patch_size": patch, **spelled}
    made = pil(module, processor)(**json.loads(json.dumps(file)))
    assert (made.size.shortest_edge, made.size.longest_edge) == (least, most)
    try:
        patches = made.get_number_of_image_patches(height, width)
    except ValueError:
        with pytest.raises(StagemeterError, match="more than 200 times"):
            views(name, width, height, file)
    else:
        assert views(name, width, height, file).image_tokens == patches // 4


@pytest.mark.parametrize(
    ("name", "module", "processor"),
    [("glm-4.5v", "glm4v", "Glm4vImageProcessorPil"), ("glm-ocr", "glm46v", "Glm46VImageProcessorPil")],
)
@many
@given(sides, sides, st.tuples(st.integers(1, 6_000_000), st.integers(1, 6_000_000)))
def test_pixels_of_glm(name, module, processor, width, height, limits):
    least, most = sorted(limits)
    file = {"size": {"shortest_edge": least, "longest_edge": most}}
    try:
        patches = pil(module, processor)(**file).get_number_of_image_patches(height, width)
    except ValueError:
        with pytest.raises(StagemeterError, match="more than 200 times"):
            views(name, width, height, file)
    else:
        assert views(name, width, height, file).image_tokens == patches // 4


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "paddleocr-vl", "glm-ocr", "mistral-small-3.1-24b"])
def test_what_a_file_leaves_out_is_the_default_of_the_class(name):
    classes = {
        "qwen2.5-vl-7b": ("qwen2_vl", "Qwen2VLImageProcessorPil"),
        "paddleocr-vl": ("paddleocr_vl", "PaddleOCRVLImageProcessorPil"),
        "glm-ocr": ("glm46v", "Glm46VImageProcessorPil"),
        "mistral-small-3.1-24b": ("pixtral", "PixtralImageProcessorPil"),
    }
    processor = pil(*classes[name])(**({"patch_size": 28} if "pixtral" in classes[name] else {}))
    page = Image.new("RGB", (3000, 4000))
    if name.startswith("mistral"):
        height, width = processor(page, return_tensors="np")["image_sizes"][0]
        expected = (height // 28) * (width // 28)
    else:
        expected = processor.get_number_of_image_patches(4000, 3000) // 4
    assert views(name, 3000, 4000, {"do_normalize": True}).image_tokens == expected
    assert views(name, 3000, 4000, {}).image_tokens == expected


@pytest.mark.parametrize("name", ["mistral-small-3.1-24b", "lighton-ocr-default"])
@settings(many, max_examples=25)
@given(st.integers(30, 1500), st.integers(30, 1500), st.integers(100, 1600))
def test_longest_side_of_pixtral(name, width, height, longest):
    assume(min(width, height) * longest >= 28 * max(width, height))
    processor = pil("pixtral", "PixtralImageProcessorPil")(size={"longest_edge": longest}, patch_size=28)
    rows, columns = processor(Image.new("RGB", (width, height)), return_tensors="np")["image_sizes"][0] // 28
    file = {"size": {"longest_edge": longest}, "patch_size": 28}
    assert views(name, width, height, file).image_tokens == rows * columns


@many
@given(st.integers(40, 3000), st.integers(40, 3000), st.integers(60, 1600), st.sampled_from([14, 28, 42]))
def test_patches_of_lighton_are_those_of_its_image_processor(width, height, longest, patch):
    """Resize pages to the image processor's patches; tokens have 28 pixels. Source: ``processing_lighton_ocr.py``."""
    from transformers.models.lighton_ocr.processing_lighton_ocr import get_resize_output_image_size

    assume(min(width, height) * longest >= 28 * max(width, height))
    import numpy as np

    rows, columns = get_resize_output_image_size(
        np.zeros((3, height, width)), (longest, longest), (patch, patch), "channels_first"
    )
    file = {"size": {"longest_edge": longest}, "patch_size": {"height": patch, "width": patch}}
    assert views("lighton-ocr-default", width, height, file).image_tokens == (rows // 28) * (columns // 28)


@many
@given(sides, sides, st.integers(4, 20_000), st.integers(2, 600), st.booleans())
def test_patches_of_kimi(width, height, most, side, published):
    (resize,) = functions_of("kimi_k25", ["navit_resize"])
    _, (padded_height, padded_width) = resize(height, width, 14, 2, most, side)
    older = {
        "media_proc_cfg": {
            "in_patch_limit": most,
            "patch_limit_on_one_side": side,
            "patch_size": 14,
            "merge_kernel_size": 2,
            "fixed_output_tokens": None,
        }
    }
    newer = {"max_patches": most, "size": {"max_height": side, "max_width": side}}
    made = views("kimi-k2.5", width, height, older if published else newer)
    assert made.image_tokens == (padded_height // 28) * (padded_width // 28)


@st.composite
def tiles(draw, least=1):
    fewest, most = sorted(draw(st.tuples(st.integers(least, 24), st.integers(least, 24))))
    return {"min_patches": fewest, "max_patches": most}


@many
@given(sides, sides, tiles(), st.booleans())
def test_tiles_of_internvl(width, height, limits, said):
    file = {"size": {"height": 448, "width": 448}, "crop_to_patches": said, **limits}
    # The whole processor asks for crops in each call.
    processor = GotOcr2ImageProcessor(**{**file, "crop_to_patches": True})
    expected = 256 * processor.get_number_of_image_patches(height, width)
    assume(limits["max_patches"] > 1)
    assert views("internvl3-1b", width, height, file).image_tokens == expected


@many
@given(sides, sides, tiles(), st.booleans())
def test_tiles_of_got_ocr2(width, height, limits, crops):
    file = {"size": {"height": 1024, "width": 1024}, "crop_to_patches": crops, **limits}
    expected = 256 * GotOcr2ImageProcessor(**file).get_number_of_image_patches(height, width)
    assert views("got-ocr2", width, height, file).image_tokens == expected


@many
@given(sides, sides, tiles())
def test_tiles_of_deepseek_ocr_2(width, height, limits):
    from transformers.models.deepseek_ocr2.processing_deepseek_ocr2 import DeepseekOcr2Processor

    image = pil("deepseek_ocr2", "DeepseekOcr2ImageProcessorPil")(**limits)
    grid_of = import_module("transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2")
    columns, rows = grid_of.get_optimal_tiled_canvas((height, width), (768, 768), *limits.values())
    processor = object.__new__(DeepseekOcr2Processor)
    processor.image_processor, processor.patch_size, processor.downsample_ratio = image, 16, 4
    processor.image_token = "i"
    cut = columns * rows if max(width, height) > 768 else 0
    expected = len(processor.replace_image_token({"num_local_patches": [cut]}, 0))
    assert views("deepseek-ocr-2", width, height, limits).image_tokens == expected


@many
@given(sides, sides, tiles(), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_tiles_of_unlimited_ocr(width, height, limits, whole, tile, crops):
    from transformers.models.unlimited_ocr.processing_unlimited_ocr import UnlimitedOcrProcessor

    file = {
        "size": {"height": 64 * whole, "width": 64 * whole},
        "tile_size": 64 * tile,
        "crop_to_patches": crops,
        **limits,
    }
    names = ["get_all_supported_aspect_ratios", "get_optimal_tiled_canvas"]
    _, grid_of = functions_of("unlimited_ocr", names)
    cut = crops and max(width, height) > 64 * tile
    grid = grid_of((height, width), (64 * tile, 64 * tile), *limits.values()) if cut else (1, 1)
    processor = object.__new__(UnlimitedOcrProcessor)
    processor.image_token, processor.patch_size, processor.downsample_ratio = "i", 16, 4
    inputs = {"patches_grid": [grid], "num_local_patches": [math.prod(grid) if cut else 0]}
    expected = processor.replace_image_token(inputs, 0, size=file["size"], tile_size=64 * tile)
    made = views("unlimited-ocr-default", width, height, file)
    assert made.image_tokens == len(expected)
    assert (made.width, made.tile_side) == (64 * whole, 64 * tile)


@many
@given(sides, sides, st.integers(1, 24), st.booleans())
def test_tiles_of_llama_4(width, height, most, largest):
    names = ["get_factors", "find_supported_resolutions", "get_best_fit"]
    _, resolutions_of, fit_of = functions_of("llama4", names)
    import torch

    canvases = torch.tensor(resolutions_of(most, SizeDict(height=336, width=336)))
    rows, columns = (int(side) // 336 for side in fit_of((height, width), canvases, largest))
    made = views("llama-4-scout", width, height, {"max_patches": most, "resize_to_max_canvas": largest})
    assert (made.global_views + made.local_views) == (rows * columns + 1 if rows * columns > 1 else 1)
    assert made.image_tokens == 144 * (made.global_views + made.local_views)


@settings(many, max_examples=30)
@given(
    st.integers(20, 900),
    st.integers(20, 900),
    st.integers(100, 3000) | st.tuples(st.integers(64, 1500), st.integers(64, 1500)),
    st.booleans(),
    st.booleans(),
)
def test_tiles_of_smolvlm(width, height, size, splits, resizes):
    sizes = {"longest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]}
    file = {
        "size": sizes,
        "max_image_size": {"longest_edge": 512},
        "do_image_splitting": splits,
        "do_resize": resizes,
    }
    processor = pil("idefics3", "Idefics3ImageProcessorPil")(**file)
    shapes = []

    def measure(image, size, **kwargs):
        # Pixels do not matter, and filling them takes most of the time.
        if size.longest_edge:
            module = import_module("transformers.models.idefics3.image_processing_pil_idefics3")
            rows, columns = module.get_resize_output_image_size(image, resolution_max_side=size.longest_edge)
        else:
            rows, columns = size.height, size.width
        shapes.append((rows, columns))
        import numpy as np

        return np.broadcast_to(np.zeros((), np.float32), (3, rows, columns))

    processor.resize = measure
    made = processor(Image.new("RGB", (width, height)), return_tensors="np", do_rescale=False, do_normalize=False)
    assert views("smolvlm-256m", width, height, file).image_tokens == 64 * made["pixel_values"].shape[1]


@many
@given(sides, sides, st.integers(1, 12), st.integers(10, 600), st.floats(1, 3))
def test_crops_of_gemma_3(width, height, most, smallest, ratio):
    import numpy as np

    file = {
        "size": {"height": 896, "width": 896},
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": smallest,
        "pan_and_scan_max_num_crops": most,
        "pan_and_scan_min_ratio_to_activate": ratio,
    }
    processor = pil("gemma3", "Gemma3ImageProcessorPil")(**file)
    crops = processor.pan_and_scan(
        np.broadcast_to(np.zeros((), np.uint8), (3, height, width)),
        pan_and_scan_min_crop_size=smallest,
        pan_and_scan_max_num_crops=most,
        pan_and_scan_min_ratio_to_activate=ratio,
    )
    assert views("gemma-3-4b", width, height, file).image_tokens == 256 * (1 + len(crops))


@many
@given(sides, sides, st.sampled_from([70, 140, 280, 560, 1120]))
def test_tokens_of_gemma_4(width, height, most):
    module = import_module("transformers.models.gemma4.image_processing_pil_gemma4")
    file = {"max_soft_tokens": most, "patch_size": 16, "pooling_kernel_size": 3}
    try:
        rows, columns = module.get_aspect_ratio_preserving_size(height, width, 16, 9 * most, 3)
    except ValueError:
        with pytest.raises(StagemeterError, match="processor refuses it"):
            views("gemma-4-e2b", width, height, file)
        return
    made = views("gemma-4-e2b", width, height, file)
    assert made.image_tokens == (rows // 48) * (columns // 48)
    assert made.padded_tokens == (None if most == 280 else most)


@many
@given(sides, sides, st.integers(1, 20), st.integers(60, 900), st.booleans(), st.sampled_from(["always", "never"]))
def test_slices_of_minicpm(width, height, most, side, slices, upsize):
    from transformers.models.minicpm_ocr.image_processing_minicpm_ocr import MiniCPMOcrImageProcessor

    file = {
        "max_slice_nums": most,
        "scale_resolution": side,
        "slice_mode": slices,
        "small_image_upsize": upsize,
    }
    name = "minicpm-ocr-default"
    sizes = describe_model(name).architecture
    file |= {"patch_size": sizes.patch_size, "downsample_mode": {4: "4x", 16: "16x"}[sizes.patches_of_token]}
    assume(side >= sizes.block)
    passed = side, sizes.patch_size, file["downsample_mode"]
    processor = object.__new__(MiniCPMOcrImageProcessor)
    grid = processor.get_sliced_grid((height, width), most, side) if slices else None
    whole = processor.find_best_resize((height, width), *passed, allow_upscale=grid is None and upsize == "always")
    expected = math.prod(whole) // sizes.block**2
    if grid is not None:
        expected += math.prod(processor.get_refine_size((height, width), grid, *passed, True)) // sizes.block**2
    assert views(name, width, height, file).image_tokens == expected


@pytest.mark.parametrize("name", ["llava-1.6-mistral-7b", "llava-onevision-0.5b"])
@many
@given(sides, sides, st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9))
def test_canvases_of_llava(name, width, height, shapes):
    onevision = name.startswith("llava-one")
    side = 384 if onevision else 336
    canvases = [[side * rows, side * columns] for rows, columns in shapes]
    kind = LlavaOnevisionProcessor if onevision else LlavaNextProcessor
    processor, image = object.__new__(kind), type("Image", (), {"image_grid_pinpoints": canvases})
    processor.image_processor, processor.vision_aspect_ratio = image, "anyres_max_9"
    processor.num_image_tokens, processor.patch_size = 729, 14
    processor.num_additional_image_tokens, processor.vision_feature_select_strategy = 1, "default"
    expected = processor._get_number_of_features(height, width, side, side) - (not onevision)
    file = {"image_grid_pinpoints": canvases, "size": {"height": side, "width": side}}
    file |= {"do_center_crop": False}
    assert views(name, width, height, file).image_tokens == expected


def test_one_view_is_what_the_encoder_takes():
    square = {"height": 896, "width": 896}
    assert views("gemma-3-4b", 100, 300, {"size": square}).image_tokens == 256
    cropped = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True}
    assert views("llava-1.5-7b", 100, 300, cropped).image_tokens == 576
    assert views("trocr-base", 100, 300, {"size": 384}).image_tokens == 577
    assert views("donut-base", 100, 300, {"size": [1920, 2560]}).image_tokens == 4800
    assert views("nougat-base", 100, 300, {"size": {"height": 896, "width": 672}}).image_tokens > 0
    florence = {"size": {"height": 768, "width": 768}, "do_center_crop": False, "crop_size": 768}
    assert views("florence-2-base", 100, 300, {**florence, "image_seq_length": 577}).image_tokens == 577
    assert views("paligemma-3b", 9, 9, {"size": {"height": 224, "width": 224}}).image_tokens == 256
    mllama = {"size": {"height": 560, "width": 560}, "max_image_tiles": 4}
    assert views("llama-3.2-11b-vision", 900, 300, mllama).image_tokens == 1
