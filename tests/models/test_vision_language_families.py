"""Families that read pages by a vision transformer: three ways of counting, torch's counter, the real processors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from small_vision_language_models import IMAGE_TOKEN, KINDS
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, GotOcr2ImageProcessor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from stagemeter.config import AnalysisConfig
from stagemeter.cost import total
from stagemeter.errors import StagemeterError
from stagemeter.models.description import ModelDescription, describe_model
from stagemeter.models.families.internvl import tile_grid
from stagemeter.models.family import all_parameters
from stagemeter.models.native_vision import resized
from stagemeter.models.registry import families, family_of
from stagemeter.planning import plan_request
from stagemeter.tiers import analytic_tier, extracted_tier, isolated_tier

FAMILIES = families()
few = settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@st.composite
def requests(draw):
    return AnalysisConfig(
        image_w=draw(st.integers(3, 500)),
        image_h=draw(st.integers(3, 500)),
        text_tokens=draw(st.integers(1, 9)),
        new_tokens=draw(st.integers(1, 12)),
        batch_size=draw(st.integers(1, 2)),
        seq_len=draw(st.none() | st.integers(1, 60)),
    )


def describe(config):
    family = family_of(config, "a small configuration")
    return ModelDescription("small", family, family.architecture_from_config(config, "small"), config, "small")


def costs(tier):
    assert not tier.failures
    return {name: count.cost for name, count in tier.stages.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_isolated_extracted_and_analytic_are_equal(kind, data):
    described, request = describe(data.draw(KINDS[kind])), data.draw(requests())
    family, sizes = described.family, described.architecture
    workload = plan_request(request, described)
    model = family.build(sizes, described.config)
    isolated = isolated_tier(family.stages, model, sizes, workload)
    extracted = extracted_tier(family, model, sizes, workload)
    analytic = analytic_tier(family, sizes, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic)
    assert isolated.stages["decode"].request_cost == analytic.stages["decode"].request_cost
    assert not any(count.unsupported for tier in (isolated, extracted) for count in tier.stages.values())
    whole = total(count.cost for name, count in extracted.stages.items() if name != "decode")
    assert extracted.passes["forward"].of("") == whole

    saved = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    assert all_parameters(family, sizes) == sum(saved.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=2)
@given(st.data())
def test_real_tensors_and_torchs_own_counter(kind, data):
    """A page is read and text generated on real numbers, with eager attention, counted by torch."""
    described = describe(data.draw(KINDS[kind]))
    request = data.draw(requests()).model_copy(update={"seq_len": None})
    workload = plan_request(request, described)
    expected = analytic_tier(described.family, described.architecture, workload).stages
    model = real_model(described.config)
    picture = torch.full((workload.batch_size, workload.image_tokens), IMAGE_TOKEN)
    ids = torch.cat([picture, torch.zeros(workload.batch_size, workload.text_tokens, dtype=torch.long)], dim=1)
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


def page_inputs(kind, described, workload, ids):
    """What the model's processor makes of the pages of a batch."""
    if not kind.startswith("qwen"):
        views = workload.batch_size * (workload.global_views + workload.local_views)
        page = {"pixel_values": torch.rand(views, 3, workload.base_size, workload.base_size)}
        if kind in ("idefics3", "llava_next", "llava_onevision"):
            page["pixel_values"] = page["pixel_values"].unflatten(0, (workload.batch_size, -1))
        if kind.startswith("llava_"):
            page["image_sizes"] = torch.tensor([[workload.image_height, workload.image_width]] * workload.batch_size)
        return page | ({"token_type_ids": (ids == IMAGE_TOKEN).long()} if kind == "gemma3" else {})
    vision = described.architecture.vision
    width, height = workload.view_size or (workload.base_size, workload.base_size)
    grid = torch.tensor([[1, height // vision.patch_size, width // vision.patch_size]] * workload.batch_size)
    return {
        "pixel_values": torch.rand(int(grid.prod(-1).sum()), vision.patch_elements),
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
    }


def real_model(config):
    torch.manual_seed(0)
    plain = {key: value for key, value in config.items() if key != "model_type"}
    settings_of = AutoConfig.for_model(config["model_type"], **plain)
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
    vision = replace(describe_model("qwen2-vl-7b").architecture.vision, max_pixels=most)
    try:
        rows, columns = smart_resize(height, width, 28, vision.min_pixels, most)
    except ValueError:
        with pytest.raises(StagemeterError, match="more than 200 times the other"):
            resized(vision, width, height)
    else:
        assert resized(vision, width, height) == (columns, rows)


def test_image_tokens_of_qwen():
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 16384})
    later = Qwen2VLImageProcessorPil(size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16)
    for model in ("qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"):
        processor = later if model.startswith("qwen3") else processor
        for width, height in [(28, 28), (1654, 2339), (2339, 1654), (20, 3000), (9000, 8000)]:
            workload = plan_request(AnalysisConfig(image_w=width, image_h=height), describe_model(model))
            assert workload.image_tokens == processor.get_number_of_image_patches(height, width, {}) // 4


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([364, 384, 512]))
def test_tiles_of_smolvlm_are_those_of_its_processor(width, height, side):
    processor = Idefics3ImageProcessorPil(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side})
    sizes = describe_model("smolvlm-256m").architecture
    views = FAMILIES["idefics3"].views(replace(sizes, vision=replace(sizes.vision, image_size=side)), width, height)
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
        ("llava-1.5-7b", {"vision_feature_layer": [-2, -5]}, "vision_feature_layer is [-2, -5]"),
        ("llava-1.5-7b", {"vision_config": None}, "lacks the settings 'vision_config'"),
        ("llava-1.5-7b", {"text_config": {"model_type": "gpt2"}}, "(model_type 'gpt2'), which no family takes"),
        ("gemma-3-4b", {"mm_tokens_per_image": 250}, "mm_tokens_per_image 250 is no square"),
        ("internvl3-1b", {"downsample_ratio": 0.25}, "downsample_ratio is 0.25: this family is made for 0.5"),
    ],
)
def test_what_a_family_is_not_made_for_is_refused(model, change, message):
    config = {**describe_model(model).config, **change}
    with pytest.raises(StagemeterError) as refused:
        describe(config)
    assert message in str(refused.value)
