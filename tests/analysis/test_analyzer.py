"""The analyzer's public methods, and what it does when something cannot be counted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_config import CONFIG

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer, StagemeterError

PAGE = Path(__file__).parents[2] / "examples" / "page.png"


@pytest.fixture(scope="module")
def full_size():
    return DeepseekOCRStaticAnalyzer(DeepSeekOCRSession.from_config())


@pytest.fixture
def small():
    return DeepseekOCRStaticAnalyzer(DeepSeekOCRSession.from_config(CONFIG))


SMALL_PAGE = {"base_size": 64, "image_size": 64, "image_w": 200, "image_h": 100}


def test_the_example_page_takes_two_by_three_tiles(full_size):
    input_ids, kwargs = full_size.prepare_inputs(AnalysisConfig(sample_image_path=str(PAGE)))
    tiles, page = kwargs["images"][0]
    assert input_ids.shape == (1, 913)
    assert tiles.shape == (6, 3, 640, 640)
    assert page.shape == (1, 3, 1024, 1024)
    assert {tiles.device.type, page.device.type} == {"meta"}
    assert kwargs["images_spatial_crop"].shape == (1, 2)


def test_pixels_and_spans_on_a_real_device():
    analyzer = DeepseekOCRStaticAnalyzer(DeepSeekOCRSession.from_config(CONFIG, device="cpu", dtype="float32"))
    input_ids, kwargs = analyzer.prepare_inputs(AnalysisConfig(sample_image_path=str(PAGE), dtype="float32"))
    tiles, page = kwargs["images"][0]
    assert kwargs["images_spatial_crop"].tolist() == [[2, 3]]
    assert kwargs["images_seq_mask"].sum() == 903
    assert (input_ids[kwargs["images_seq_mask"]] == 128815).all()
    assert not (input_ids[~kwargs["images_seq_mask"]] == 128815).any()
    assert input_ids[0, 0] == 0
    assert page.min() >= -1
    assert page.max() <= 1
    # A white page with black text, padded with grey at its sides.
    assert tiles.max() == 1
    assert abs(page[0, :, 512, 0] - (127 / 255 - 0.5) / 0.5).max() < 1e-6


def test_orientation_is_applied_first(tmp_path, full_size):
    path = tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2339, 1654), "white").save(path, exif=exif)
    report = full_size.generate_report(AnalysisConfig(sample_image_path=str(path)))
    assert report["metadata"]["workload"]["tile_grid"] == [2, 3]


def test_the_whole_model_by_module_and_operator(small):
    result = small.analyze_full_model(AnalysisConfig(**SMALL_PAGE))
    assert result["total_flops"] == result["by_module"][""] == sum(result["by_operator"].values())
    assert result["total_activations"] == result["acts_by_module"][""]
    children = ["model.vision_tower", "model.multi_modal_projector", "model.language_model"]
    assert result["by_module"]["model"] == sum(result["by_module"][child] for child in children)
    assert sum(result["by_module_and_operator"]["lm_head"].values()) == result["by_module"]["lm_head"]
    assert result["unsupported_ops"] == {}
    assert result["total_params"] == small.generate_report(AnalysisConfig(**SMALL_PAGE))["total"]["params"]


def test_one_stage_alone(small):
    config = AnalysisConfig(**SMALL_PAGE)
    alone = small.analyze_stage_isolated("clip", config)
    assert alone.flops == alone.flops_isolated == alone.flops_analytic
    assert alone.flops_extracted is None
    assert alone.flops == small.analyze_all_stages(config)["clip"].flops
    with pytest.raises(ValueError, match=r"unknown stage 'encoder'.*sam, clip, projector, prefill, decode"):
        small.analyze_stage_isolated("encoder", config)


def test_a_given_length_is_the_length_of_the_language_model(small):
    short = small.generate_report(AnalysisConfig(**SMALL_PAGE, seq_len=3))
    whole = small.generate_report(AnalysisConfig(**SMALL_PAGE))
    assert short["metadata"]["workload"]["prompt_tokens"] == 3
    assert short["stages"]["sam"] == whole["stages"]["sam"]
    assert short["stages"]["prefill"]["flops"] < whole["stages"]["prefill"]["flops"]
    assert any("shorter than" in note for note in short["notes"])
    assert short["agreement"]["status"] == "equal"
    long = small.generate_report(AnalysisConfig(**SMALL_PAGE, seq_len=500))
    assert any("longer than" in note for note in long["notes"])


def test_totals_are_the_request(small):
    report = small.generate_report(AnalysisConfig(**SMALL_PAGE, new_tokens=5))
    stages, total = report["stages"], report["total"]
    forward = sum(stages[name]["flops"] for name in ("sam", "clip", "projector", "prefill"))
    assert total["flops_forward"] == forward
    assert total["flops"] == forward + stages["decode"]["flops_total"] == 2 * total["macs"]
    prompt = report["metadata"]["workload"]["prompt_tokens"]
    assert total["kv_cache_bytes"] == 2 * 2 * 2 * 16 * (prompt + 4) * 2
    assert total["weight_bytes"] == 2 * total["params"]


def test_one_new_token_takes_no_decode_step(small):
    decode = small.generate_report(AnalysisConfig(**SMALL_PAGE, new_tokens=1))["stages"]["decode"]
    assert (decode["steps"], decode["flops_total"], decode["bytes_read_total"]) == (0, 0, 0)
    assert decode["flops"] > 0


def fail(*args, **kwargs):
    raise ArithmeticError("no such thing")


def test_a_failure_in_one_stage_takes_no_other_along(small, caplog):
    config = AnalysisConfig(**SMALL_PAGE)
    expected = small.generate_report(config)["stages"]
    small.session.model.model.vision_tower.vision_encoder.forward = fail
    report = small.generate_report(config)
    clip = report["stages"]["clip"]
    assert clip["source"] == "analytic"
    assert clip["flops"] == expected["clip"]["flops"]
    assert (clip["flops_isolated"], clip["flops_extracted"]) == (None, None)
    assert any("ArithmeticError: no such thing" in note for note in clip["notes"])
    # The pass of the whole model goes through the failing stage; the others still have their own.
    for name in ("sam", "projector", "prefill", "decode"):
        assert report["stages"][name]["flops_isolated"] == expected[name]["flops"]
    assert report["agreement"]["status"] == "incomplete"
    assert "clip" in report["agreement"]["incomplete_stages"]
    assert "clip: could not be counted by the isolated tier: ArithmeticError" in caplog.text


def test_without_the_fallback_a_stage_that_cannot_be_counted_is_left_out_with_the_reason(small):
    small.session.model.model.vision_tower.vision_encoder.forward = fail
    report = small.generate_report(AnalysisConfig(**SMALL_PAGE, use_analytic_fallback=False))
    clip = report["stages"]["clip"]
    assert (clip["source"], clip["flops"]) == ("none", 0)
    assert any("left out" in note for note in clip["notes"])
    assert report["stages"]["sam"]["source"] == "isolated"


def test_tiers_that_differ_are_said_out_loud(small, monkeypatch, caplog):
    architecture = small.session.architecture
    wrong = replace(architecture, decoder=replace(architecture.decoder, intermediate=25))
    monkeypatch.setattr(small.session, "architecture", wrong)
    report = small.generate_report(AnalysisConfig(**SMALL_PAGE))
    assert report["agreement"]["status"] == "different"
    assert report["stages"]["prefill"]["flops_isolated"] != report["stages"]["prefill"]["flops_analytic"]
    assert any(line.startswith("prefill macs") for line in report["agreement"]["differences"])
    assert any(note.startswith("disagreement: prefill") for note in report["notes"])
    assert "the tiers disagree" in caplog.text


def test_sizes_that_are_not_the_models_are_refused(small):
    with pytest.raises(StagemeterError, match="patch_size: 14 is not this model's, which is 16"):
        small.generate_report(AnalysisConfig(**SMALL_PAGE, patch_size=14))


def test_progress_is_reported():
    steps = []
    session = DeepSeekOCRSession.from_config(CONFIG)
    DeepseekOCRStaticAnalyzer(session, progress=steps.append).generate_report(AnalysisConfig(**SMALL_PAGE))
    assert len(steps) == 3
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
@pytest.mark.parametrize("fused", [True, False])
def test_the_tiers_agree_whatever_the_data_type_and_attention_of_the_session(dtype, size, fused):
    session = DeepSeekOCRSession.from_config(CONFIG, dtype=dtype, use_flash_attn=fused)
    report = DeepseekOCRStaticAnalyzer(session).generate_report(AnalysisConfig(**SMALL_PAGE, dtype=dtype))
    assert report["agreement"]["status"] == "equal"
    assert report["total"]["weight_bytes"] == size * report["total"]["params"]


def test_a_context_that_no_step_reaches_is_noted(small):
    report = small.generate_report(AnalysisConfig(**SMALL_PAGE, new_tokens=5, decode_context=2))
    assert any(note.startswith("no step of the request attends to 2 tokens") for note in report["notes"])


def test_a_stage_that_runs_and_costs_nothing_is_named():
    from dataclasses import replace

    from stagemeter.analysis.build_report import build_report
    from stagemeter.analysis.requests import plan_request
    from stagemeter.analysis.tiers import ANALYTIC, analytic_tier
    from stagemeter.core.cost import ZERO
    from stagemeter.models.lookup import describe_model

    model, config = describe_model("llava-1.5-7b"), AnalysisConfig()
    stages = tuple(
        replace(stage, cost=lambda sizes, values: ZERO) if stage.name == "projector" else stage
        for stage in model.family.stages
    )
    family, workload = replace(model.family, stages=stages), plan_request(config, model)
    for made, named in ((model.family, False), (family, True)):
        tiers = {ANALYTIC: analytic_tier(made, model.architecture, workload)}
        report = build_report(replace(model, family=made), config, workload, tiers)
        assert (
            any("projector costs 0 FLOPs: it is called for this request" in note for note in report["notes"]) == named
        )
