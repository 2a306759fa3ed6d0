"""The generic family: parts that are found, counts that equal those of real runs, sums over decode steps, refusals."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.models.auto import modeling_auto

from stagemeter import AnalysisConfig, StagemeterError, analyze_model, describe_model, estimate_model
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import isolated_tier
from stagemeter.core.cost import total
from stagemeter.core.workload import Workload
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.models.closed_form import decode_span
from stagemeter.models.generic import parameters
from stagemeter.models.generic.family import make_family
from stagemeter.utilization.memory import roofline_section
from stagemeter.utilization.pairing import pair

ROOT = Path(__file__).parents[2]

OLMO = {
    "model_type": "olmo2",
    "architectures": ["Olmo2ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}
VIPLLAVA = {
    "model_type": "vipllava",
    "architectures": ["VipLlavaForConditionalGeneration"],
    "image_token_index": 100,
    "vision_feature_layers": [-1, 0],
    "tie_word_embeddings": True,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 56,
        "patch_size": 14,
    },
    "text_config": {"model_type": "llama", "tie_word_embeddings": True}
    | {name: OLMO[name] for name in OLMO if name not in ("model_type", "architectures")},
}
#: One of every kind: dense, experts, windows, latent and sparse attention, states, linear attention, a layered head,
#: and of those that see: tiles, own resolution, attention to what is seen, encoders.
CAUSAL = ("bert", "deepseek_v32", "zamba2", "qwen3_next", "minimax", "modernbert-decoder", "musicgen", "llama4_text")
SEEING = (
    "llava_next", "idefics3", "qwen3_vl", "gemma4", "deepseek_ocr2", "florence2", "pix2struct",
    "vision-encoder-decoder", "minicpmv4_6", "chameleon", "kosmos-2", "instructblip", "dots3_note",
)  # fmt: skip


@pytest.fixture(scope="module")
def coverage():
    return runpy.run_path(str(ROOT / "docs" / "coverage.py"))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CAUSAL + SEEING)
def test_counts_are_those_of_a_real_run(coverage, model_type):
    kind = [types[model_type] for types in coverage["kinds"]().values() if model_type in types][-1]
    found = coverage["look_at"](model_type, kind)
    assert found.state in ("exact", "exact but for listed operators"), found.why
    assert found.why in ("", "aten.linalg_solve_triangular")
    if model_type in SEEING:
        assert found.training == found.state + (f": {found.why}" if found.why else "")


def test_coverage_page_has_every_type_and_nothing_is_off(coverage):
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    named = [(row[0].removeprefix("| "), row[1]) for row in rows if row[1] in coverage["STATES"]]
    types = [name for mapping in coverage["kinds"]().values() for name in sorted(mapping)]
    assert [name for name, _ in named] == types
    assert f"transformers {transformers.__version__}" in page
    assert not [name for name, state in named if state == "off"]
    trained = [row for row in rows if row[1] in coverage["STATES"] and len(row) > 3]
    assert [row[0] for row in trained if row[1] == "exact" and row[3] != "exact |"] == []
    assert len(trained) == len(coverage["kinds"]()[coverage["PICTURES"]])
    assert set(CAUSAL) <= set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.fixture
def model_of(tmp_path):
    """Describe a model by its configuration, in a folder as checkpoints are."""

    def make(config, **files):
        (tmp_path / "config.json").write_text(json.dumps(config))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return describe_model(str(tmp_path))

    return make


def sum_of_all_steps(model, workload):
    """Every decode step counted on its own."""
    first, last = decode_span(workload)
    steps = []
    for context in range(first, last + 1):
        at = replace(workload, decode_context=context, new_tokens=1)
        tier = isolated_tier([model.family.stage("decode")], model.architecture.model, model.architecture, at)
        steps.append(tier.stages["decode"].cost)
    return total(steps)


WINDOWED = OLMO | {
    "model_type": "cohere2",
    "architectures": ["Cohere2ForCausalLM"],
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}


@pytest.mark.parametrize("config", [OLMO, WINDOWED], ids=["all", "window"])
@pytest.mark.parametrize(
    ("prompt", "new"),
    [pytest.param(3, 14, marks=pytest.mark.slow), (7, 2), pytest.param(12, 9, marks=pytest.mark.slow), (5, 1)],
)
def test_decode_steps_are_summed_as_if_each_was_counted(model_of, config, prompt, new):
    model = model_of(config)
    workload = plan_request(AnalysisConfig(seq_len=prompt, new_tokens=new), model)
    report = analyze_model(model, AnalysisConfig(seq_len=prompt, new_tokens=new))
    assert report["agreement"]["equal"]
    assert report["agreement"]["tiers"] == ["isolated", "extracted"]
    whole = sum_of_all_steps(model, workload) if new > 1 else total([])
    assert report["stages"]["decode"]["flops_total"] == whole.flops
    assert report["stages"]["decode"]["activations_total"] == whole.activations


def test_report_has_all_parameters_once_and_says_how_parts_were_found(model_of):
    model = model_of(VIPLLAVA)
    report = analyze_model(model, AnalysisConfig(image_w=100, image_h=50, new_tokens=4))
    assert list(report["stages"]) == ["tower", "projector", "prefill", "decode"]
    parameters = sum(parameter.numel() for parameter in model.architecture.model.parameters())
    assert report["total"]["params"] == parameters
    # Tied: the head's are the embedding's.
    assert report["stages"]["decode"]["params"] == 0
    assert report["closed_form"] is None
    assert report["metadata"]["workload"]["image_tokens"] == 16
    note = next(note for note in report["notes"] if note.startswith("no family is known"))
    for part in ("vision: model.vision_tower (CLIPVisionModel)", "decoder: model.language_model (LlamaModel)"):
        assert part in note
    assert any("CLIPImageProcessorPil with its own defaults" in note for note in report["notes"])


def test_prompt_without_room_for_its_page_is_counted_as_far_as_can_be(model_of):
    config = AnalysisConfig(image_w=100, image_h=50, new_tokens=4)
    whole = analyze_model(model_of(VIPLLAVA), config)
    short = analyze_model(model_of(VIPLLAVA), config.model_copy(update={"seq_len": 10}))
    assert short["stages"]["tower"]["flops"] == whole["stages"]["tower"]["flops"]
    assert short["stages"]["prefill"]["flops_extracted"] is None
    assert short["stages"]["prefill"]["flops"] < whole["stages"]["prefill"]["flops"]
    assert short["agreement"]["status"] == "incomplete"
    assert any("no room for a page of 16" in note for note in short["stages"]["prefill"]["notes"])


def test_embedding_that_is_shared_is_no_projector():
    found_family, found = make_family(describe_model("florence-2-base").config, {}, "a family of its own left aside")
    stages = {stage.name: stage for stage in found_family.stages}
    assert stages["projector"].modules == ("model.multi_modal_projector",)
    assert stages["encode"].modules == ("model.language_model.encoder",)
    parameters = {name: stage.parameters(found).total for name, stage in stages.items()}
    embedding = found.model.get_input_embeddings().weight.numel()
    assert parameters["projector"] < embedding < parameters["encode"]
    assert sum(parameters.values()) == sum(p.numel() for p in found.model.parameters())


def test_one_token_uses_the_experts_that_it_chooses(model_of):
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "layer_types": ["attention", "attention"]}
    model = model_of(OLMO | experts | {"model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"]})
    report = analyze_model(model, AnalysisConfig(seq_len=4, new_tokens=2))
    # Gate and up in one matrix, and down: of 6 of 8 experts, in 2 layers.
    idle = 6 * 2 * (64 * 2 * 96 + 96 * 64)
    assert report["total"]["params"] - report["total"]["params_active"] == idle
    assert any("which experts run depends on the tokens" in note for note in report["notes"])


def test_experts_that_are_not_recognized_are_said(model_of, monkeypatch):
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "layer_types": ["attention", "attention"]}
    monkeypatch.setattr(parameters, "_CHOSEN", ("no such setting",))
    model = model_of(OLMO | experts | {"model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"]})
    report = analyze_model(model, AnalysisConfig(seq_len=4, new_tokens=2))
    assert report["total"]["params"] == report["total"]["params_active"]
    assert any("params_active holds all of them" in note for note in report["notes"])


def test_preprocessor_of_the_checkpoint_decides_the_views(model_of):
    config = AnalysisConfig(image_w=100, image_h=50)
    size = {"height": 56, "width": 56}
    ours = {"image_processor_type": "CLIPImageProcessor", "size": size, "crop_size": size, "image_mean": [0.5] * 3}
    for files in ({"preprocessor_config": ours}, {"processor_config": {"image_processor": ours}}):
        report = analyze_model(model_of(VIPLLAVA, **files), config)
        assert any("with preprocessor_config.json" in note for note in report["notes"])
    wrong = {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 28, "width": 28}}
    with pytest.raises(StagemeterError, match="does not run on shapes alone"):
        # What a whole processor holds goes over a file of the image processor alone, which is still there.
        model_of(VIPLLAVA, processor_config={"image_processor": wrong})
    with pytest.raises(StagemeterError, match=r"max_pixels: 9 means nothing to .*by its preprocessor_config\.json"):
        plan_request(AnalysisConfig(max_pixels=9), model_of(VIPLLAVA, processor_config={"image_processor": ours}))


def test_cache_is_as_large_as_one_that_was_filled(model_of):
    model = model_of(WINDOWED)
    report = analyze_model(model, AnalysisConfig(seq_len=30, new_tokens=3, batch_size=2))
    whole, window = 32, 7  # A window is full with one token less than it spans.
    assert report["total"]["kv_cache_bytes"] == 2 * 2 * (2 * 16) * (whole + window) * 2
    assert report["stages"]["decode"]["kv_bytes_written"] == 2 * 2 * 2 * (2 * 16) * 2
    section = roofline_section(
        report, model.family, model.architecture, device_peak(find_device("H100-SXM", ""), "bfloat16")
    )
    assert section["memory"]["kv_cache_bytes"] == report["total"]["kv_cache_bytes"]
    assert section["memory"]["working_set_bytes"] == {}
    assert any("times are those of what transformers executes" in note for note in section["notes"])


def test_there_is_nothing_to_estimate_by(model_of):
    with pytest.raises(StagemeterError, match="without --estimate"):
        estimate_model(model_of(OLMO), AnalysisConfig())


def test_times_pair_with_the_workload_that_was_counted_and_no_other(model_of):
    report = analyze_model(model_of(OLMO), AnalysisConfig(seq_len=30, new_tokens=3))
    peak = device_peak(find_device("H100-SXM", ""), "bfloat16")
    workload = Workload.from_dict(report["metadata"]["workload"])
    paired = pair(report, {"prefill": 1.0, "decode": 1.0}, workload, peak)
    assert paired["stages"]["decode"]["flops"] == report["stages"]["decode"]["flops_total"] // 2
    with pytest.raises(StagemeterError, match=r"no closed form.*prompt_tokens.*Analyze the workload"):
        pair(report, {"prefill": 1.0}, replace(workload, prompt_tokens=31), peak)


REFUSED = {
    "takes no cache": ({"model_type": "openai-gpt", "n_embd": 48, "n_layer": 2}, "takes no cache"),
    "own cache": ({"model_type": "xlnet", "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 96}, "of its own kind"),
    "asks for values": (
        {"model_type": "jetmoe", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128},
        "does not run on shapes alone",
    ),
    "no decoder": (
        {"model_type": "vit", "hidden_size": 48, "num_attention_heads": 4},
        "no class of the type 'vit' that",
    ),
    "wrong sizes": (OLMO | {"num_attention_heads": 0}, "cannot be made a model"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_counted_is_refused_with_a_reason(model_of, why):
    config, message = REFUSED[why]
    with pytest.raises(StagemeterError, match=message):
        analyze_model(model_of(config), AnalysisConfig(seq_len=8, new_tokens=2))


def test_model_that_leaves_its_cache_empty_is_refused(model_of, monkeypatch):
    # As layers do that take a cache and keep what they need elsewhere.
    monkeypatch.setattr(DynamicCache, "update", lambda self, keys, values, *rest: (keys, values))
    with pytest.raises(StagemeterError, match="keeps nothing of what came before"):
        model_of(OLMO)


def test_values_of_weights_are_never_taken_for_known(model_of):
    found = model_of(VIPLLAVA).architecture
    assert all(found.known.value_of(parameter.detach()) is None for parameter in found.model.parameters())
    assert all(parameter.device.type == "meta" for parameter in found.model.parameters())
    assert torch.get_default_device().type == "cpu"


_SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
#: Decoders whose attention is causal, and whose class does not say so; with scores of their own, as ALiBi has.
_SILENT = {
    "bloom": {**_SIZES, "n_layer": 2, "n_head": 2},
    "mpt": {"vocab_size": 99, "d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64},
    "xglm": {**_SIZES, "d_model": 32, "ffn_dim": 48, "attention_heads": 2, "num_layers": 2},
    "codegen": {"vocab_size": 99, "n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "n_ctx": 64},
    "falcon": {**_SIZES, "alibi": True},
    "gpt_neox_japanese": _SIZES,
}


@pytest.mark.parametrize("kind", _SILENT)
def test_causal_attention_counts_visible_pairs_whether_its_class_says_so_or_not(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **_SILENT[kind]}), encoding="utf-8")
    report = analyze_model(describe_model(str(tmp_path)), AnalysisConfig(seq_len=8, new_tokens=3))
    assert report["agreement"]["equal"]
    prefill, decode = report["stages"]["prefill"], report["stages"]["decode"]
    # Scores and values of two layers, over a width of 32, two FLOPs each: of 8 tokens, each later one is hidden.
    assert prefill["flops"] - prefill["flops_causal"] == 2 * 2 * (8 * 7 // 2) * 32 * 2
    assert decode["flops"] == decode["flops_causal"]
