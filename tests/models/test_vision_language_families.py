"""Families that read pages by a vision transformer: three ways of counting, torch's counter, the real processors."""

import json
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from processor_functions import functions_of
from small_text_models import SOLVED
from small_vision_language_models import IMAGE_TOKEN, KINDS
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
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
from transformers.models.minicpm_ocr.image_processing_minicpm_ocr import MiniCPMOcrImageProcessor
from transformers.models.mllama.image_processing_pil_mllama import (
    get_optimal_tiled_canvas as get_optimal_tiled_canvas_of_mllama,
)
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import smart_resize as smart_resize_of_paddle
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_of_videos
from transformers.models.unlimited_ocr.processing_unlimited_ocr import UnlimitedOcrProcessor

from stagemeter.analysis.analyze import analyze_model, estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.core.cost import total
from stagemeter.core.errors import StagemeterError
from stagemeter.models.configuration import complete
from stagemeter.models.families import families, family_of
from stagemeter.models.family import all_parameters
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.models.pages.pixel_limits import PixelLimits, resized_between
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import tile_grid

FAMILIES = families()
VIDEO_TOKEN = IMAGE_TOKEN + 1
PIXTRAL = ("mistral3", "lighton_ocr")
few = settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@st.composite
def requests(draw, kind):
    return AnalysisConfig(
        video_frames=draw(st.none() | st.integers(2, 5)) if kind.startswith("qwen") else None,
        image_w=draw(st.integers(3, 500)),
        image_h=draw(st.integers(3, 500)),
        text_tokens=draw(st.integers(1, 9)),
        new_tokens=draw(st.integers(1, 12)),
        batch_size=draw(st.integers(1, 2)),
        seq_len=draw(st.none() | st.integers(1, 60)),
    )


@cache
def published(name):
    """Return the sizes of a shipped model."""
    return describe_model(name).architecture


def describe(config):
    settings = complete(config, "small")
    family = family_of(settings, "small")
    return ModelDescription("small", family, family.architecture_from_config(settings, "small"), config, "small")


def costs(tier):
    assert not tier.failures
    return {name: count.cost for name, count in tier.stages.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_isolated_extracted_and_analytic_are_equal(kind, data):
    described, request = describe(data.draw(KINDS[kind])), data.draw(requests(kind))
    family, sizes = described.family, described.architecture
    workload = plan(kind, request, described)
    model = family.build(sizes, described.config)
    isolated = isolated_tier(family.stages, model, sizes, workload)
    extracted = extracted_tier(family, model, sizes, workload)
    analytic = analytic_tier(family, sizes, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic)
    assert isolated.stages["decode"].request_cost == analytic.stages["decode"].request_cost
    unsupported = [count.unsupported for tier in (isolated, extracted) for count in tier.stages.values()]
    assert set().union(*unsupported) <= ({SOLVED} if kind.startswith(("qwen3_next", "qwen3_5", "minicpm")) else set())
    whole = total(count.cost for name, count in extracted.stages.items() if name != "decode")
    assert extracted.passes["forward"].of("") == whole

    saved = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    # What a checkpoint holds and transformers leaves out; what MiniCPM-OCR does not use is in the model all the same.
    unused = 0 if kind == "minicpm_ocr" else sum(stage.parameters(sizes).unused for stage in family.stages)
    assert all_parameters(family, sizes) == sum(saved.values()) + unused


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=2)
@given(st.data())
def test_real_tensors_and_torchs_own_counter(kind, data):
    """A page is read and text generated on real numbers, with eager attention, counted by torch."""
    described = describe(data.draw(KINDS[kind]))
    request = data.draw(requests(kind)).model_copy(update={"seq_len": None})
    workload = plan(kind, request, described)
    expected = analytic_tier(described.family, described.architecture, workload).stages
    model = real_model(described.config)
    ids = prompts(kind, workload)
    page = page_inputs(kind, described, workload, ids)
    with torch.no_grad():
        with FlopCounterMode(display=False) as forward:
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **page)
        assert forward.get_total_flops() == sum(
            count.cost.flops for name, count in expected.items() if name != "decode"
        )
        with FlopCounterMode(display=False) as decode:
            for _ in range(workload.decode_steps):
                following = torch.zeros(workload.batch_size, 1, dtype=torch.long)
                out = model(input_ids=following, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        assert decode.get_total_flops() == expected["decode"].request_cost.flops


def prompts(kind, workload):
    """Tokens that stand for the page and then text; of Qwen 3-VL, text is between the frames of a video, too."""
    views, video = workload.global_views, workload.video_frames is not None
    picture = [VIDEO_TOKEN if video else IMAGE_TOKEN] * workload.image_tokens
    text = [0] * workload.text_tokens
    if video and kind.startswith("qwen3"):
        assume(len(text) >= views)
        size = len(picture) // views
        row = [token for view in range(views) for token in [0, *picture[view * size : (view + 1) * size]]]
        row += text[views:]
    else:
        row = picture + text
    return torch.tensor([row] * workload.batch_size)


def plan(kind, request, described):
    """Plan a request, of those that transformers runs: Pixtral's processor shrinks none to nothing, and the code of
    Mistral 3 squeezes the features of a page of one token to a vector."""
    if kind in PIXTRAL:
        sides = request.image_w, request.image_h
        assume(min(sides) * described.architecture.longest_side >= max(sides))
    workload = plan_request(request, described)
    assume(kind != "mistral3" or workload.batch_size * workload.image_tokens > 1)
    return workload


def page_inputs(kind, described, workload, ids):
    """What the model's processor makes of the pages of a batch."""
    if kind in PIXTRAL:
        width, height = workload.view_size or (workload.base_size, workload.base_size)
        return {
            "pixel_values": torch.rand(workload.batch_size, 3, height, width),
            "image_sizes": torch.tensor([[height, width]] * workload.batch_size),
        }
    if kind in ("kimi_k25", "paddleocr_vl"):
        width, height = workload.view_size or (workload.base_size, workload.base_size)
        grid = torch.tensor([[1, height // 14, width // 14]] * workload.batch_size)
        page = {"pixel_values": torch.rand(int(grid.prod(-1).sum()), 3, 14, 14), "image_grid_thw": grid}
        return page | ({"mm_token_type_ids": (ids == IMAGE_TOKEN).int()} if kind == "paddleocr_vl" else {})
    if kind == "gemma4":
        return page_of_gemma4(described.architecture, workload) | {"mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
    if kind == "minicpm_ocr":
        return page_of_minicpm(described.architecture, workload)
    if kind == "mllama":
        return page_of_mllama(described.architecture, workload)
    if not kind.startswith(("qwen", "glm")):
        views = workload.batch_size * (workload.global_views + workload.local_views)
        page = {"pixel_values": torch.rand(views, 3, workload.base_size, workload.base_size)}
        if kind in ("idefics3", "llava_next", "llava_onevision"):
            page["pixel_values"] = page["pixel_values"].unflatten(0, (workload.batch_size, -1))
        if kind.startswith("llava_"):
            page["image_sizes"] = torch.tensor([[workload.image_height, workload.image_width]] * workload.batch_size)
        return page | ({"token_type_ids": (ids == IMAGE_TOKEN).long()} if kind in ("gemma3", "paligemma") else {})
    vision = described.architecture.vision
    width, height = workload.view_size or (workload.base_size, workload.base_size)
    views = workload.global_views
    grid = torch.tensor([[views, height // vision.patch_size, width // vision.patch_size]] * workload.batch_size)
    pixels = torch.rand(int(grid.prod(-1).sum()), vision.patch_elements)
    kinds = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()
    if workload.video_frames is None:
        return {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    return {"pixel_values_videos": pixels, "video_grid_thw": grid, "mm_token_type_ids": kinds}


def page_of_gemma4(sizes, workload):
    """Patches as the processor pads them: those that are no part of the page lie nowhere."""
    view = workload.view_size or (workload.base_size, workload.base_size)
    width, height = (side // sizes.patch_size for side in view)
    patches = 280 * sizes.pooled**2
    places = torch.full((patches, 2), -1)
    places[: width * height] = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    pixels = torch.rand(workload.batch_size, patches, 3 * sizes.patch_size**2)
    return {"pixel_values": pixels, "image_position_ids": places.expand(workload.batch_size, -1, -1)}


def page_of_minicpm(sizes, workload):
    """Patches of all views side by side, as the processor lays them; its own code says how large they are."""
    views = views_of_minicpm(workload.image_width, workload.image_height, sizes.patch_size, sizes.merge_after)
    grids = torch.tensor([[height // sizes.patch_size, width // sizes.patch_size] for width, height in views])
    grids = grids.repeat(workload.batch_size, 1)
    patches = int(grids.prod(-1).sum())
    pixels = torch.rand(1, 3, sizes.patch_size, patches * sizes.patch_size)
    return {"pixel_values": pixels, "target_sizes": grids.int()}


def views_of_minicpm(width, height, patch_size, merges_more):
    processor, mode = object.__new__(MiniCPMOcrImageProcessor), "16x" if merges_more else "4x"
    grid = processor.get_sliced_grid((height, width), 9, 448)
    rows, columns = processor.find_best_resize((height, width), 448, patch_size, mode, allow_upscale=grid is None)
    views = [(columns, rows)]
    if grid is not None:
        rows, columns = processor.get_refine_size((height, width), grid, 448, patch_size, mode, allow_upscale=True)
        views += [(columns // grid[1], rows // grid[0])] * (grid[0] * grid[1])
    return views


def page_of_mllama(sizes, workload):
    """Tiles as the processor pads them, and what each token sees of them."""
    pages, tiles = workload.batch_size, sizes.tiles
    used = torch.arange(tiles) < workload.global_views
    return {
        "pixel_values": torch.rand(pages, 1, tiles, 3, sizes.image_size, sizes.image_size),
        "aspect_ratio_ids": torch.ones(pages, 1, dtype=torch.long),
        "aspect_ratio_mask": used.long().expand(pages, 1, -1),
        "cross_attention_mask": used.long().expand(pages, workload.prompt_tokens, 1, -1),
    }


def test_decoder_that_closed_forms_cannot_count_is_left_to_the_generic_family(tmp_path):
    config = describe_model("llava-1.5-7b").config
    text = {**describe_model("qwen3-next-80b-a3b").config, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": text}), encoding="utf-8")
    model = describe_model(str(tmp_path))
    assert model.family.name == "generic"
    (note,) = model.notes
    assert "its language model has layers of the kind 'gated_delta', which this family does not know" in note


def real_model(config):
    torch.manual_seed(0)
    plain = {key: value for key, value in config.items() if key != "model_type"}
    settings_of = AutoConfig.for_model(config["model_type"], **plain)
    # Experts one by one, which torch's counter knows.
    settings_of.get_text_config()._experts_implementation = "eager"
    return AutoModelForImageTextToText.from_config(settings_of, attn_implementation="eager").eval()


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 14))
def test_tiles_of_internvl_are_its_processors(width, height, most):
    processor = GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=most)
    views = processor.get_number_of_image_patches(height, width, {"patch_size": {"height": 448, "width": 448}})
    columns, rows = tile_grid(width, height, 448, most)
    assert views == (columns * rows + 1 if columns * rows > 1 else 1)


@settings(max_examples=300, deadline=None)
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


def views_of(family, sizes, width, height):
    return family.rules(sizes, ProcessorSettings()).page(width, height)


def test_image_tokens_of_qwen():
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 16384})
    later = Qwen2VLImageProcessorPil(size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16)
    for model in ("qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"):
        processor = later if model.startswith("qwen3") else processor
        for width, height in [(28, 28), (1654, 2339), (2339, 1654), (20, 3000), (9000, 8000)]:
            workload = plan_request(AnalysisConfig(image_w=width, image_h=height), describe_model(model))
            assert workload.image_tokens == processor.get_number_of_image_patches(height, width, {}) // 4


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_tiles_of_mllama_are_those_of_its_processor(width, height):
    model = describe_model("llama-3.2-11b-vision")
    view = views_of(model.family, model.architecture, width, height)
    rows, columns = (side // 560 for side in get_optimal_tiled_canvas_of_mllama(height, width, 4, 560))
    assert (view.global_views, view.tile_grid) == (rows * columns, (columns, rows))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_pages_of_minicpm_are_cut_as_its_processor_does(width, height):
    model = describe_model("minicpm-ocr-default")
    view, views = views_of(model.family, model.architecture, width, height), views_of_minicpm(width, height, 16, False)
    assert (view.width, view.height) == views[0]
    assert view.local_views == len(views) - 1
    assert view.image_tokens == sum(columns * rows // 32**2 for columns, rows in views)


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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
        held = model.family.decoder(model.architecture).cache_of(workload, 913 + new_tokens - 1)
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


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_pages_of_kimi_are_padded_as_its_processor_does(width, height):
    (navit_resize,) = functions_of("kimi_k25", ["navit_resize"])
    _, (rows, columns) = navit_resize(height, width, 14, 2, 16_384, 512)
    view = views_of(FAMILIES["kimi-k2.5"], published("kimi-k2.5"), width, height)
    assert (view.width, view.height) == (columns, rows)
    assert view.image_tokens == rows * columns // 28**2


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (
            "llava-1.5-7b",
            {"vision_feature_select_strategy": 5},
            "select_strategy is 5; it must be a text",
        ),
        (
            "gemma-3-4b",
            {"vision_config": {"vision_use_head": "no"}},
            "use_head is 'no'; it must be true or false",
        ),
        ("llava-1.5-7b", {"vision_config": 7}, "vision_config: it is 7. An object of settings is needed"),
        (
            "llava-1.5-7b",
            {"text_config": {"model_type": "gpt2"}},
            "model_type is 'gpt2', a decoder that no family takes",
        ),
        ("gemma-3-4b", {"mm_tokens_per_image": 250}, "mm_tokens_per_image 250 is no square"),
        ("internvl3-1b", {"downsample_ratio": 0.25}, "downsample_ratio is 0.25: this family is made for 0.5"),
    ],
)
def test_what_a_family_is_not_made_for_is_refused(model, change, message):
    config = {**describe_model(model).config, **change}
    with pytest.raises(StagemeterError) as refused:
        describe(config)
    assert message in str(refused.value)


def small(kind, **changed):
    """A small model of a kind with some settings changed; those of its encoder under ``vision``."""
    text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 32}
    text |= {"intermediate_size": 48, "vocab_size": 99, "max_position_embeddings": 512}
    encoder = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    encoder |= {"patch_size": 4, "image_size": 16}
    architecture, language, vision = {
        "llava": ("LlavaForConditionalGeneration", "llama", "clip_vision_model"),
        "llava_next": ("LlavaNextForConditionalGeneration", "llama", "clip_vision_model"),
        "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "qwen2", "siglip_vision_model"),
        "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text", "siglip_vision_model"),
    }[kind]
    extra = {"head_dim": 16, "sliding_window": 8} if kind == "gemma3" else {}
    extra |= changed.pop("text", {})
    vision_config = {"model_type": vision, "vision_use_head": False, **encoder, **changed.pop("vision", {})}
    tiles = {} if kind in ("llava", "gemma3") else {"image_grid_pinpoints": [[16, 32], [32, 16]]}
    return {
        "architectures": [architecture],
        "model_type": kind,
        "text_config": {"model_type": language, **text, **extra},
        "vision_config": vision_config,
        "image_token_index": 50,
        **tiles,
        **({"mm_tokens_per_image": 4} if kind == "gemma3" else {}),
        **changed,
    }


BEYOND = {
    "full": small("llava", vision_feature_select_strategy="full"),
    "SigLIP": small("llava", vision={"model_type": "siglip_vision_model"}, vision_feature_select_strategy="full"),
    "SigLIP with its head": small("llava", vision={"model_type": "siglip_vision_model", "vision_use_head": True}),
    "last layer": small("llava", vision_feature_layer=-1),
    "a layer from the first": small("llava", vision_feature_layer=2),
    "several layers": small("llava", vision_feature_layer=[-2, -1]),
    "several layers, the embedding too": small("llava", vision_feature_layer=[0, 2]),
    "one layer in a list": small("llava", vision_feature_layer=[-2]),
    "tiles, last layer": small("llava_next", vision_feature_layer=-1),
    "tiles, several layers": small("llava_next", vision_feature_layer=[-2, -1]),
    "OneVision with its head": small("llava_onevision", vision={"vision_use_head": True}),
    "OneVision, another layer": small("llava_onevision", vision_feature_layer=-2),
    "a decoder of no family": small("llava", text={"model_type": "phi3", "pad_token_id": None}),
    "tiles, a decoder of no family": small("llava_next", text={"model_type": "olmo2", "pad_token_id": None}),
    "Gemma 3 with its head": small("gemma3", vision={"vision_use_head": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BEYOND)
def test_what_closed_forms_do_not_know_is_counted_by_running(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps(BEYOND[kind]), encoding="utf-8")
    model = describe_model(str(tmp_path))
    assert model.family.name == "generic"
    report = analyze_model(model, AnalysisConfig(image_w=30, image_h=20, new_tokens=3))
    assert report["agreement"]["equal"], report["agreement"]
    assert not report["unsupported_ops"]
    read = AutoConfig.from_pretrained(str(tmp_path))
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(read)
    assert report["total"]["params"] == sum(parameter.numel() for parameter in built.parameters())
    assert any("counted without the closed forms of the family" in note for note in report["notes"])
    with pytest.raises(StagemeterError, match="there is nothing to estimate it by: counted without the closed forms"):
        estimate_model(model, AnalysisConfig())


def test_the_last_layer_runs_where_no_other_is_taken(tmp_path):
    """By hand: what the projector of a model takes follows from its layers, and the tokens from the strategy."""
    (tmp_path / "config.json").write_text(json.dumps(BEYOND["several layers, the embedding too"]), encoding="utf-8")
    report = analyze_model(describe_model(str(tmp_path)), AnalysisConfig(image_w=30, image_h=20, new_tokens=1))
    # 16 patches of two layers of 16 each, to 32, and again to 32.
    assert report["stages"]["projector"]["macs"] == 16 * (2 * 16 * 32 + 32 * 32)
