"""Families that read pages: three ways of counting are equal to one another and to torch's own counter."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from few_examples import few
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from processor_functions import views_of_minicpm
from small_resolution_models import IMAGE_TOKEN
from small_text_models import SOLVED
from small_vision_language_models import KINDS, describe
from tier_costs import all_steps, costs
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
)

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.core.cost import total
from stagemeter.models.families import families
from stagemeter.models.family import all_parameters

FAMILIES = families()
VIDEO_TOKEN = IMAGE_TOKEN + 1
PIXTRAL = ("mistral3", "lighton_ocr")
#: Square views, patches of a page, cross-attention.
DIFFERENT = ("llava", "qwen2_5_vl", "mllama")


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


def maybe_in_parts(workload, described):
    """The workload, or with its page and some of its text in the cache, or computed in chunks."""
    page, last = max(1, workload.image_tokens), workload.prompt_tokens - 1
    # Llama 3.2 attends to its page besides the prompt, and PaliGemma's prompts are read both ways.
    if described.family.name in ("mllama", "paligemma") or page > last:
        return st.just(workload)
    # Chunks that hold a page do not cut what its tokens see.
    chunks = st.none() | st.integers(page, last)
    return st.builds(partial(replace, workload), cached_tokens=st.none() | st.integers(page, last), chunk_tokens=chunks)


@pytest.mark.parametrize(
    "kind", [kind if kind in DIFFERENT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
@few
@given(st.data())
def test_isolated_extracted_and_analytic_are_equal(kind, data):
    described, request = describe(data.draw(KINDS[kind])), data.draw(requests(kind))
    family, sizes = described.family, described.architecture
    workload = data.draw(maybe_in_parts(plan(kind, request, described), described))
    model = family.build(sizes, described.config)
    isolated = isolated_tier(family.stages, model, sizes, workload)
    extracted = extracted_tier(family, model, sizes, workload)
    analytic = analytic_tier(family, sizes, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic)
    assert all_steps(isolated) == all_steps(analytic)
    unsupported = [count.unsupported for tier in (isolated, extracted) for count in tier.stages.values()]
    assert set().union(*unsupported) <= ({SOLVED} if kind.startswith(("qwen3_next", "qwen3_5", "minicpm")) else set())
    whole = total(count.cost for name, count in extracted.stages.items() if name != "decode")
    assert replace(extracted.passes["forward"].of(""), macs_causal=whole.macs_causal) == whole

    saved = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    # What a checkpoint holds and transformers leaves out; what MiniCPM-OCR does not use is in the model all the same.
    unused = 0 if kind == "minicpm_ocr" else sum(stage.parameters(sizes).unused for stage in family.stages)
    assert all_parameters(family, sizes) == sum(saved.values()) + unused


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=2)
@given(st.data())
def test_real_tensors_and_torchs_own_counter(kind, data):
    """Read a page and generate text on real numbers with eager attention; torch counts the same."""
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
    """Return tokens of the page, then text; Qwen 3-VL also has text between the frames of a video."""
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
    """Plan a request that transformers can run.

    Pixtral's processor shrinks no page to nothing. Mistral 3 fails on a page of one token.
    """
    if kind in PIXTRAL:
        sides = request.image_w, request.image_h
        assume(min(sides) * described.architecture.longest_side >= max(sides))
    workload = plan_request(request, described)
    assume(kind != "mistral3" or workload.batch_size * workload.image_tokens > 1)
    return workload


def page_inputs(kind, described, workload, ids):
    """Return what the model's processor makes of the pages of a batch."""
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
    pixels = torch.rand(int(grid.prod(-1).sum()), vision.vit.patch_elements)
    kinds = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()
    if workload.video_frames is None:
        return {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    return {"pixel_values_videos": pixels, "video_grid_thw": grid, "mm_token_type_ids": kinds}


def page_of_gemma4(sizes, workload):
    """Return patches as the processor pads them; padding lies nowhere."""
    view = workload.view_size or (workload.base_size, workload.base_size)
    width, height = (side // sizes.patch_size for side in view)
    patches = 280 * sizes.pooled**2
    places = torch.full((patches, 2), -1)
    places[: width * height] = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    pixels = torch.rand(workload.batch_size, patches, 3 * sizes.patch_size**2)
    return {"pixel_values": pixels, "image_position_ids": places.expand(workload.batch_size, -1, -1)}


def page_of_minicpm(sizes, workload):
    """Return the patches of all views side by side, with the sizes that the processor's own code gives."""
    views = views_of_minicpm(workload.image_width, workload.image_height, sizes.patch_size, sizes.merge_after)
    grids = torch.tensor([[height // sizes.patch_size, width // sizes.patch_size] for width, height in views])
    grids = grids.repeat(workload.batch_size, 1)
    patches = int(grids.prod(-1).sum())
    pixels = torch.rand(1, 3, sizes.patch_size, patches * sizes.patch_size)
    return {"pixel_values": pixels, "target_sizes": grids.int()}


def page_of_mllama(sizes, workload):
    """Return tiles as the processor pads them, and what each token sees of them."""
    pages, tiles = workload.batch_size, sizes.tiles
    used = torch.arange(tiles) < workload.global_views
    return {
        "pixel_values": torch.rand(pages, 1, tiles, 3, sizes.image_size, sizes.image_size),
        "aspect_ratio_ids": torch.ones(pages, 1, dtype=torch.long),
        "aspect_ratio_mask": used.long().expand(pages, 1, -1),
        "cross_attention_mask": used.long().expand(pages, workload.prompt_tokens, 1, -1),
    }


def real_model(config):
    torch.manual_seed(0)
    plain = {key: value for key, value in config.items() if key != "model_type"}
    settings_of = AutoConfig.for_model(config["model_type"], **plain)
    # Experts one by one, which torch's counter knows.
    settings_of.get_text_config()._experts_implementation = "eager"
    return AutoModelForImageTextToText.from_config(settings_of, attn_implementation="eager").eval()
