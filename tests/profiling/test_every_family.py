"""Requests of every kind of model on real weights: every stage has a time, and the times pair with the counts."""

import json
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, find, settings
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import small_encoder_decoders
import small_text_models
import small_vision_language_models

from stagemeter import AnalysisConfig, StagemeterError, analyze_model, describe_model, estimate_model
from stagemeter.analysis.requests import plan_request
from stagemeter.hardware.roofline import Peak
from stagemeter.models.families.deepseek_ocr.page import page_arguments, request_inputs
from stagemeter.profiling import harness
from stagemeter.profiling.running import Session
from stagemeter.utilization.pairing import pair

KINDS = small_text_models.KINDS | small_vision_language_models.KINDS | small_encoder_decoders.KINDS
#: Dense, experts, latent attention, linear attention, states; own resolution, tiles, cross-attention; encoders.
FAST = (
    "llama", "mixtral", "deepseek_v3", "qwen3_next", "minimax", "mamba2", "zamba2", "gemma2", "gpt_oss",
    "qwen2_vl", "qwen3_vl_moe", "llava_next", "internvl", "mllama", "unlimited_ocr", "florence2", "trocr", "donut",
)  # fmt: skip
#: Of a type that no family takes.
GENERIC = {
    "model_type": "granitemoe",
    "architectures": ["GraniteMoeForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "layer_types": ["attention", "attention"],
}
VIPLLAVA = {
    "model_type": "vipllava",
    "architectures": ["VipLlavaForConditionalGeneration"],
    "image_token_index": 100,
    "vision_feature_layers": [-1, 0],
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 56,
        "patch_size": 14,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 128,
        "max_position_embeddings": 256,
    },
}
PEAK = Peak("a device", "float32", 1e15, 1e15, "made up")


def small(kind):
    """Return the simplest configuration of a kind."""
    once = settings(max_examples=1, phases=[Phase.generate], derandomize=True, database=None, deadline=None)
    return find(KINDS[kind], lambda config: True, settings=once)


@pytest.fixture
def described(tmp_path):
    def make(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return describe_model(str(tmp_path))

    return make


def request(model, **asked):
    page = {"image_w": 200, "image_h": 150} if model.family.reads_pages else {"seq_len": 20}
    return AnalysisConfig(model=model.name, dtype="float32", **page, **{"new_tokens": 3, "batch_size": 2} | asked)


def profile(model, config):
    """Run a request once unmeasured and once measured; return its workload, its times and the experts it read."""
    workload = plan_request(config, model)
    session = Session.build(model, "cpu", "float32")
    finite = []
    head = session.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: finite.append(bool(out.isfinite().all())))
    experts = harness.warm_up(session, workload, 1)
    (repeat,) = harness.measure(session, workload, 1)
    assert all(finite)
    assert repeat.ranges["decode"] == workload.decode_steps
    return workload, repeat.times_ms, experts


def check_pairing(model, report, workload, times, experts):
    """Pair, and return the stages whose bytes are bounds."""
    assert report["metadata"]["workload_hash"] == workload.hash
    paired = pair(report, times, workload, PEAK, experts)
    assert not paired["missing"]
    assert set(paired["stages"]) >= {stage.name for stage in model.family.stages} | {"total"}
    assert all(row["mfu"] > 0 for row in paired["stages"].values())
    bounds = [name for name, row in paired["stages"].items() if row["bytes_least"] < row["bytes"]]
    assert [flag for flag in paired["flags"] if "at most" in flag] == [
        f"{', '.join(bounds)}: the bytes of the experts that ran are not known, so bytes, GB/s and MBU are at most "
        "what is given, and the roofline at least"
    ] * bool(bounds)
    return bounds


def check_family(model):
    config = request(model)
    workload, times, experts = profile(model, config)
    assert not check_pairing(model, estimate_model(model, config), workload, times, experts)


@pytest.mark.parametrize("kind", FAST)
def test_times_of_a_family_pair_with_its_closed_forms(described, kind):
    check_family(described(small(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - set(FAST)))
def test_times_of_any_other_family_pair_with_its_closed_forms(described, kind):
    check_family(described(small(kind)))


@pytest.mark.parametrize("config", [GENERIC, VIPLLAVA], ids=["text", "page"])
def test_times_of_a_model_without_closed_forms_pair_at_the_counted_workload(described, config):
    model = described(config)
    asked = request(model)
    workload, times, experts = profile(model, asked)
    assert set(experts) == ({"prefill", "decode"} if config is GENERIC else set())
    report = analyze_model(model, asked)
    # The bytes of one expert are in closed forms alone.
    bounds = check_pairing(model, report, workload, times, experts)
    assert bounds == (["prefill", "decode", "total"] if config is GENERIC else [])
    with pytest.raises(StagemeterError, match="no closed form"):
        pair(report, times, replace(workload, batch_size=3), PEAK)


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "mamba2", "qwen2_vl", "mllama"])
def test_a_decode_step_sees_all_that_came_before_it(described, kind):
    model = described(small(kind))
    session = Session.build(model, "cpu", "float32")
    logits = []
    session.model.get_output_embeddings().register_forward_hook(lambda module, args, out: logits.append(out[:, -1]))
    workload = plan_request(request(model, new_tokens=4), model)
    generated = session.run(session.prepare(workload))
    # The same, each token from a pass over everything before it.
    for step in range(1, 4):
        whole = replace(workload, prompt_tokens=workload.prompt_tokens + step, new_tokens=1)
        again = session.prepare(whole)
        before = session.prepare(workload).prefill.arguments
        again.prefill.arguments["input_ids"] = torch.cat([before["input_ids"], generated[:, :step]], dim=1)
        if "pixel_values" in before:
            again.prefill.arguments["pixel_values"] = before["pixel_values"]
        session.run(again)
        torch.testing.assert_close(logits[-1], logits[step], rtol=1e-3, atol=1e-4)


def test_random_weights_differ_between_parameters_and_not_between_builds(described, monkeypatch):
    model = described(small("llama"))
    with monkeypatch.context() as patch:
        patch.setattr("stagemeter.profiling.running.build_model", None)
        weights = dict(Session.build(model, "cpu", "float32").model.named_parameters())
    matrices = [weight for weight in weights.values() if weight.dim() > 1]
    pairs = [(one, other) for one, other in combinations(matrices, 2) if one.shape == other.shape]
    assert pairs
    assert not any(torch.equal(one, other) for one, other in pairs)
    assert 0.015 < torch.cat([weight.flatten() for weight in matrices]).std() < 0.025
    again = dict(Session.build(model, "cpu", "float32").model.named_parameters())
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_request_is_the_same_every_time_and_its_text_varies(described):
    config = small("llava_next")
    config["text_config"]["vocab_size"] = 500
    model = described(config)
    session = Session.build(model, "cpu", "float32")
    workload = plan_request(request(model, text_tokens=12), model)
    first, second = (session.prepare(workload).prefill.arguments for _ in range(2))
    ids = first["input_ids"]
    assert torch.equal(ids, second["input_ids"])
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert first["pixel_values"].std() > 0.5
    assert (ids == session.model.config.image_token_id).sum() == workload.batch_size * workload.image_tokens
    assert not torch.equal(ids[0], ids[1])


def test_a_picture_token_beyond_the_embedding_gets_a_word_of_the_vocabulary(described):
    # As the published configuration of Florence-2 has it.
    config = small("florence2")
    config["text_config"]["vocab_size"] = config["image_token_id"] = 60
    model = described(config)
    session = Session.build(model, "cpu", "float32")
    workload = plan_request(request(model), model)
    for _ in range(2):
        ids = session.prepare(workload).prefill.arguments["input_ids"]
        assert int(ids.max()) < 60
        assert (ids == session.model.config.image_token_id).sum() == workload.batch_size * workload.image_tokens
    session.run(session.prepare(workload))


def test_a_picture_is_prepared_by_the_processor_of_transformers_where_its_shapes_are_the_workloads(described):
    model = described(small("qwen2_vl"))
    workload = plan_request(request(model), model)
    session = Session.build(model, "cpu", "float32")
    random = session.prepare(workload).prefill.arguments["pixel_values"]
    session.look_at(Image.new("RGB", (200, 150), "black"), workload, {})
    pixels = session.prepare(workload).prefill.arguments["pixel_values"]
    assert pixels.shape == random.shape
    # Black is one number a channel.
    assert len(pixels.unique()) == 3
    session.page = None
    session.look_at(Image.new("RGB", (900, 150), "black"), workload, {})
    assert session.page is None


@pytest.mark.parametrize("batch", [1, 2])
def test_a_picture_of_a_page_gives_the_pixels_that_inference_would_get(batch):
    model = describe_model("deepseek-ocr-small")
    config = AnalysisConfig(base_size=128, image_size=64, image_w=100, image_h=150, dtype="float32", batch_size=batch)
    workload = plan_request(config, model)
    picture = Image.effect_noise((100, 150), 60).convert("RGB")
    session = Session.build(model, "cpu", "float32")
    session.look_at(picture, workload, {})
    arguments = session.prepare(workload).prefill.arguments
    _, expected = request_inputs(workload, lambda: picture, True, torch.device("cpu"))
    for name, value in page_arguments(expected).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(arguments[name], value)
        else:
            assert arguments[name] == value
    assert workload.local_views > 1
