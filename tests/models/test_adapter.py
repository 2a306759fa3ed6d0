"""Low-rank adapters: which layers they stand beside, what they cost, and that they are in no other number."""

import json
from dataclasses import replace

import pytest
import torch
from few_examples import few
from hypothesis import given, settings
from hypothesis import strategies as st
from least_work import VISIBLE, least_work
from small_text_models import KINDS
from test_least_work import BATCH, STEPS, run
from test_text_families import read, real_model
from torch.utils.flop_counter import FlopCounterMode

from stagemeter.analysis.analyze import analyze_model, estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.core.errors import StagemeterError
from stagemeter.core.metrics import report_values
from stagemeter.models.closed_form import needed_adapter_cost
from stagemeter.models.lookup import ModelDescription, describe_model, with_adapter
from stagemeter.models.lora import Adapter
from stagemeter.models.lora_modules import adapt

ATTENTION = r".*layers\.\d+\.self_attn\.[kqo].*_proj"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "kv_b_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
#: What an adapter must leave as it is.
OWN = ("total", "stages", "closed_form", "decode_curve", "modules", "other_params", "unsupported_ops")


def settings_of(targets, rank=4, **more):
    return {"peft_type": "LORA", "r": rank, "target_modules": targets} | more


@pytest.fixture
def adapter(tmp_path):
    """Write the settings of an adapter; the folder that they are in."""

    def write(targets, rank=4, **more):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(settings_of(targets, rank, **more)), encoding="utf-8")
        return str(folder)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zamba2"])
@few
@given(st.data())
def test_three_ways_of_counting_are_equal(tmp_path_factory, kind, data):
    folder = tmp_path_factory.mktemp("adapted")
    (folder / "config.json").write_text(json.dumps(data.draw(KINDS[kind])), encoding="utf-8")
    model = describe_model(str(folder))
    # Some have no attention.
    always, some = ("out_proj", r".*layers\.\d+\.mixer\..*") if kind == "mamba2" else ("o_proj", ATTENTION)
    names = data.draw(st.lists(st.sampled_from(LAYERS), min_size=1, unique=True).map(lambda names: [*names, always]))
    targets = data.draw(st.sampled_from([names, "all-linear", some]))
    (folder / "adapter_config.json").write_text(json.dumps(settings_of(targets, data.draw(st.integers(1, 9)))))
    workload = {"seq_len": data.draw(st.integers(1, 9)), "new_tokens": 3, "batch_size": data.draw(st.integers(1, 2))}
    plain, config = AnalysisConfig(**workload), AnalysisConfig(**workload, adapter=str(folder))
    report = analyze_model(model, config)
    assert report["agreement"]["equal"], report["agreement"]
    assert report["agreement"]["tiers"] == ["isolated", "extracted", "analytic"]
    section = report["adapter"]
    assert section["total"]["flops"] == 2 * section["total"]["macs"] > 0
    # Closed forms know its parameters from what a step reads; the model has them as parameters.
    assert section == estimate_model(model, config)["adapter"]
    without = analyze_model(model, plain)
    assert without["adapter"] is None
    assert {key: report[key] for key in OWN} == {key: without[key] for key in OWN}


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], "all-linear", ["lm_head", "v_proj"]])
def test_what_torch_counts_more(adapter, targets):
    config = AnalysisConfig(model="qwen3-0.6b", adapter=adapter(targets, 8), seq_len=64, new_tokens=1)
    plain = describe_model("qwen3-0.6b")
    model = with_adapter(plain, config.adapter)
    counted = []
    for described in (plain, model):
        built = described.build()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(torch.zeros(1, 64, dtype=torch.long, device="meta"), logits_to_keep=1)
        counted.append(counter.get_total_flops())
    section = analyze_model(plain, config)["adapter"]
    assert section["total"]["flops"] == counted[1] - counted[0]


def test_by_hand(adapter):
    # Qwen 3 0.6B: 28 layers, 1024 wide, 16 heads of 128 for queries, 8 for values.
    config = AnalysisConfig(model="qwen3-0.6b", adapter=adapter(["q_proj", "v_proj"], 8), seq_len=100, new_tokens=11)
    report = analyze_model(describe_model("qwen3-0.6b"), config)
    section, values = report["adapter"], report_values(report)
    params = 28 * 8 * ((1024 + 2048) + (1024 + 1024))
    assert section["params"] == params
    assert section["weight_bytes"] == 2 * params
    assert section["stages"]["prefill"]["flops"] == 2 * 100 * params
    assert section["stages"]["decode"]["flops"] == 2 * params
    assert section["stages"]["decode"]["flops_request"] == 10 * 2 * params
    assert section["total"]["flops"] == values["flops/adapter"] == 2 * 110 * params
    assert values["params/adapter"] == params
    assert values["bytes/adapter"] == section["total"]["bytes_read"] + section["total"]["bytes_written"]
    # Both matrices, the layer's input and what is between the two are read.
    step = 28 * (2 * 1024 + 2 * 8)
    assert section["stages"]["decode"]["bytes_read"] == 2 * (params + step)
    assert section["stages"]["decode"]["activations"] == 28 * (8 + 2048 + 8 + 1024)


@pytest.mark.parametrize("kind", ["deepseek_v3", pytest.param("deepseek_v32", marks=pytest.mark.slow)])
@settings(few, max_examples=2)
@given(st.data())
def test_steps_of_latent_attention_absorb_an_adapter(kind, data):
    """Absorbed, the adapter gives the logits of the module beside which it runs over the whole context."""
    config, prompt, rank = data.draw(KINDS[kind]), data.draw(st.integers(1, 20)), data.draw(st.integers(1, 5))
    others = data.draw(st.lists(st.sampled_from(["o_proj", "gate_proj", "lm_head"]), unique=True))
    targets = ("kv_b_proj", *others)
    adapter = Adapter(rank, targets, "a test")
    plain, model = real_model(config), real_model(config)
    adapt(model, adapter, ["model"], ["lm_head"])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    logits, _ = run(model, config, prompt)
    flops = []
    for least in (plain, model):
        with least_work():
            least.set_attn_implementation(VISIBLE)
            absorbed, counted = run(least, config, prompt)
        flops.append(counted[1:])
    torch.testing.assert_close(absorbed, logits, rtol=1e-3, atol=1e-3)
    family, decoder = read(config)
    asked = AnalysisConfig(seq_len=prompt, new_tokens=STEPS + 1, batch_size=BATCH)
    workload = plan_request(asked, ModelDescription("small", family, decoder, config, "a test"))
    steps = [replace(workload, decode_context=prompt + 1 + step) for step in range(STEPS)]
    costs = [needed_adapter_cost(family.stage("decode"), decoder, adapter, step) for step in steps]
    assert [cost.flops for cost in costs] == [more - less for less, more in zip(*flops, strict=True)]


def test_step_of_deepseek_v3_by_hand(adapter):
    """61 layers of 128 heads: queries of 128 into the rank and out to 512, sums of 512 into it and out to 128."""
    config = AnalysisConfig(text_tokens=8000, new_tokens=100, adapter=adapter(["kv_b_proj"], 16))
    report = estimate_model(describe_model("deepseek-v3"), config)
    section = report["adapter"]
    step, prompt = 61 * 128 * 16 * (128 + 512 + 512 + 128), 61 * 16 * (512 + 128 * 256)
    assert section["stages"]["decode"]["macs"] == step
    assert section["stages"]["decode"]["flops_request"] == 99 * 2 * step
    assert section["stages"]["decode"]["macs_executed"] == (8000 + 50) * prompt
    assert section["stages"]["prefill"]["macs"] == section["stages"]["prefill"]["macs_executed"] == 8000 * prompt
    assert section["total"]["macs"] == 8000 * prompt + 99 * step
    # Each head has vectors of the rank, of 512 and of 128 between products. The matrix into the rank is read twice.
    assert section["stages"]["decode"]["activations"] == 61 * 128 * (16 + 512 + 16 + 128)
    read = 61 * (128 * (128 + 16 + 512 + 16) + 2 * 16 * 512 + 16 * 128 * 256)
    assert section["stages"]["decode"]["bytes_read"] == 2 * read
    values = report_values(report)
    assert values["flops_executed/adapter"] == section["total"]["flops_executed"] > 90 * values["flops/adapter"]


@pytest.mark.parametrize(
    "name", ["deepseek-ocr", "llava-1.5-7b", pytest.param("granite-docling-default", marks=pytest.mark.slow)]
)
def test_towers_and_experts_are_left_out_and_named(adapter, name):
    config = AnalysisConfig(model=name, adapter=adapter(["q_proj", "down_proj", "out_of_nowhere"]), new_tokens=3)
    report = analyze_model(describe_model(name), config)
    assert report["agreement"]["equal"], report["agreement"]
    assert set(report["adapter"]["stages"]) == {"prefill", "decode"}
    assert any("no linear layers of the decoder, such as model.vi" in note for note in report["notes"])
    assert any("names out_of_nowhere, which the model does not have" in note for note in report["notes"])


def test_experts_are_named(adapter):
    model = describe_model("qwen3-30b-a3b")
    experts = "names 48 modules that are no linear layers of the decoder, such as model.layers.0.mlp.experts"
    for targets, named in [(["q_proj", "up_proj"], True), ("all-linear", True), (["q_proj", "lm_head"], False)]:
        report = analyze_model(model, AnalysisConfig(adapter=adapter(targets), seq_len=8, new_tokens=2))
        assert any(experts in note for note in report["notes"]) == named
    assert any(
        "are not checked" in note for note in estimate_model(model, AnalysisConfig(adapter=adapter(targets)))["notes"]
    )


@pytest.mark.parametrize(
    ("targets", "more", "said"),
    [
        (["q_proj"], {"peft_type": "IA3"}, "peft_type is 'IA3'. It must be 'LORA'"),
        (["q_proj"], {"r": 0}, "r is 0. It must be a whole number, 1 or more"),
        (["q_proj"], {"r": True}, "r is True. It must be a whole number"),
        (["q_proj"], {"use_dora": True}, "use_dora is True: such adapters are not counted"),
        (["q_proj"], {"rank_pattern": {"k_proj": 2}}, "rank_pattern is {'k_proj': 2}"),
        (["q_proj"], {"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        (["q_proj"], {"target_modules": None}, "target_modules is None. It must be a list of names"),
        (["q_proj", 3], {}, "It must be a list of names"),
        ("q_proj(", {}, "is no regular expression"),
        (["c_attn"], {}, "names no linear layer of the decoder. There are lm_head, mlp.down_proj, mlp.gate_proj"),
        (r"model\.layers\.[01]\.self_attn\.q_proj", {}, "in some layers only"),
    ],
)  # fmt: skip
def test_what_is_refused(adapter, targets, more, said):
    with pytest.raises(StagemeterError) as refused:
        with_adapter(describe_model("qwen3-0.6b"), adapter(targets, **more))
    assert said in str(refused.value)


@pytest.mark.parametrize(("text", "said"), [("{", "cannot be read as JSON"), ("[]", "holds a list")])
def test_files_that_are_no_settings(tmp_path, text, said):
    file = tmp_path / "adapter_config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StagemeterError, match=said):
        with_adapter(describe_model("qwen3-0.6b"), str(file))
    with pytest.raises(StagemeterError, match=r"there is no .*elsewhere"):
        with_adapter(describe_model("qwen3-0.6b"), str(tmp_path / "elsewhere"))


def test_families_that_know_none_say_so(adapter):
    model = describe_model("qwen3-0.6b")
    stages = tuple(replace(stage, adapter=None) for stage in model.family.stages)
    without = replace(model, family=replace(model.family, stages=stages))
    with pytest.raises(StagemeterError, match=r"stands beside qwen3-0\.6b, whose family qwen3 counts none"):
        with_adapter(without, adapter(["q_proj"]))


def test_models_without_closed_forms_refuse_it_too(adapter):
    with pytest.raises(StagemeterError, match=r"names no linear layer of the decoder\. There are"):
        with_adapter(describe_model("granite-docling-default"), adapter(["c_attn"])).build()


def test_family_that_knows_none(adapter):
    with pytest.raises(StagemeterError, match=r"zamba2-default, whose family zamba2 counts none\. Leave it out"):
        with_adapter(describe_model("zamba2-default"), adapter(["q_proj"]))
