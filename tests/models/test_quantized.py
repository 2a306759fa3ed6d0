"""Weights in fewer bits: what a checkpoint's configuration says of them, and what that comes to in bytes."""

import json

import pytest
import torch
from few_examples import few
from hypothesis import given
from hypothesis import strategies as st
from small_text_models import KINDS
from transformers import AutoModelForCausalLM, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
from transformers.models.auto import AutoConfig

from stagemeter.analysis.analyze import analyze_model, estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.errors import StagemeterError
from stagemeter.core.report import report_fault
from stagemeter.core.weight_storage import QuantizedMatrix
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.models.decoder.quantized import mark_quantized, quantized_weights
from stagemeter.models.lookup import describe_model
from stagemeter.models.quantization import UnknownStorageError, read_quantization
from stagemeter.utilization.memory import roofline_section

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
#: The experts of Kimi K2 in four bits, everything else as it is.
EXPERTS_ALONE = ["lm_head", "re:.*self_attn.*", "re:.*shared_expert.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]


def compressed(weights, ignore=("lm_head",), targets=("Linear",), form="pack-quantized"):
    group = {"targets": list(targets), "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
    }


def gptq(**dynamic):
    return {"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": dynamic}


def two_groups(first, second, stored=FLOAT8):
    whole = compressed(INT4, targets=first)
    groups = whole["config_groups"] | {"group_1": {"weights": stored, "targets": second}}
    return whole | {"config_groups": groups}


SMALL_LLAMA = {
    **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
    **{"vocab_size": 99, "max_position_embeddings": 256},
}
METHODS = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [8, 16]},
    "fp8 without blocks, head too": {"quant_method": "fp8", "modules_to_not_convert": ["model.embed_tokens"]},
    "fp8, attention as it is": {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.*attn"]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 8, "group_size": -1},
    "experts in four bits": compressed(INT4, EXPERTS_ALONE),
    "channels in eight bits": compressed(FLOAT8, form="float-quantized"),
    "attention alone": compressed(INT4, targets=["re:.*self_attn.*"]),
    "nvfp4": compressed({**INT4, "group_size": 16}, form="nvfp4-pack-quantized"),
}  # fmt: skip


@pytest.fixture
def described(tmp_path):
    """Describe a model whose configuration is given."""

    def describe(config):
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return describe_model(str(tmp_path))

    return describe


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_three_ways_of_counting_are_equal(tmp_path_factory, kind, data):
    quantized = data.draw(st.sampled_from(sorted(METHODS)))
    config = data.draw(KINDS[kind]) | {"quantization_config": METHODS[quantized]}
    folder = tmp_path_factory.mktemp("quantized")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = describe_model(str(folder))
    assert model.quantization is not None, model.notes
    report = analyze_model(model, AnalysisConfig(seq_len=data.draw(st.integers(1, 9)), new_tokens=3))
    assert report["agreement"]["equal"], report["agreement"]
    # What the marked modules of the model take is what the sizes say.
    decoder = model.family.decoder(model.architecture)
    assert decoder.quantized_weights() == quantized_weights(model.build())


@pytest.mark.slow
def test_decoder_of_a_model_that_reads_pages(described):
    shipped = describe_model("smolvlm-256m")
    model = described(shipped.config | {"quantization_config": METHODS["awq"]})
    report = analyze_model(model, AnalysisConfig(image_w=700, image_h=500, new_tokens=3))
    assert report["agreement"]["equal"], report["agreement"]
    # All layers of 576 x 576 twice, 576 x 192 twice and 576 x 1536 three times, and neither the tower nor the head.
    quantized = model.family.decoder(model.architecture).quantized_weights()
    assert quantized.elements == 30 * 576 * (2 * 576 + 2 * 192 + 3 * 1536)
    assert quantized.stored_bytes * 8 == quantized.elements * (4 + (16 + 4) / 16)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "deepseek_v3", "mixtral"])
@few
@given(st.data())
def test_fp8_is_stored_as_transformers_stores_it(kind, data):
    config = data.draw(KINDS[kind]) | {"tie_word_embeddings": False}
    stored = {"quant_method": "fp8", "weight_block_size": [8, 16]}
    plain = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        mine, theirs = (
            AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain)) for _ in range(2)
        )
    mark_quantized(mine, read_quantization({"quantization_config": stored}), ["model"], ["lm_head"])
    theirs = replace_with_fp8_linear(theirs, ["lm_head"], FineGrainedFP8Config(weight_block_size=(8, 16)))
    eight_bits = [p.numel() for p in theirs.parameters() if p.element_size() == 1]
    scales = [p.numel() * p.element_size() for name, p in theirs.named_parameters() if name.endswith("scale_inv")]
    quantized = quantized_weights(mine)
    assert (quantized.elements, quantized.stored_bytes) == (sum(eight_bits), sum(eight_bits) + sum(scales))


#: ``total_size`` of the published index of the checkpoint, as quoted in public repositories.
PUBLISHED_BYTES = {"gpt-oss-20b": 13_761_264_768, "gpt-oss-120b": 65_248_815_744}


@pytest.mark.parametrize("name", PUBLISHED_BYTES)
def test_checkpoints_take_the_bytes_that_are_published(name):
    report = estimate_model(describe_model(name), AnalysisConfig(model=name))
    assert report["total"]["weight_bytes"] == PUBLISHED_BYTES[name]


def test_scales_are_as_many_as_those_published():
    # MiniMax-M2's checkpoint holds 228,703,644,928 parameters by its metadata, 13,880,064 of them scales.
    model = describe_model("minimax-m2")
    quantized = model.family.decoder(model.architecture).quantized_weights()
    assert quantized.stored_bytes - quantized.elements == 4 * 13_880_064


def test_one_matrix_by_hand():
    """What each method writes for a matrix of 256 outputs and 512 inputs, tensor by tensor."""

    def stored(settings, module="layers.0.mlp.up_proj"):
        return read_quantization({"quantization_config": settings}).storage_of(module).matrix_bytes(256, 512)

    groups = 512 // 128
    # AutoAWQ: qweight int32 (512, 256 / 8), qzeros int32 (groups, 256 / 8), scales float16 (groups, 256).
    assert stored({"quant_method": "awq", "bits": 4, "group_size": 128}) == 4 * (512 + groups) * 32 + 2 * groups * 256
    # AutoGPTQ: qweight int32 (512 / 8, 256), qzeros int32 (groups, 256 / 8), scales float16 (groups, 256).
    assert stored({"quant_method": "gptq", "bits": 4, "group_size": 128}) == (
        4 * (64 * 256 + groups * 32) + 2 * groups * 256
    )
    # compressed-tensors: weight_packed int32 (256, 512 / 8), weight_scale bfloat16 (256, groups).
    assert stored(compressed({**INT4, "group_size": 128})) == 4 * 256 * 64 + 2 * 256 * groups
    # transformers: weight float8 (256, 512), weight_scale_inv float32 (2, 4).
    assert stored({"quant_method": "fp8", "weight_block_size": [128, 128]}) == 256 * 512 + 4 * 2 * 4
    # OCP microscaling: blocks uint8 (256, 512 / 2), scales uint8 (256, 512 / 32).
    assert stored({"quant_method": "mxfp4"}, "layers.0.mlp.experts") == 256 * 256 + 256 * 16
    # NVFP4: weight_packed uint8 (256, 512 / 2), weight_scale float8 (256, 512 / 16), weight_global_scale float32 (1).
    assert stored(compressed({**INT4, "group_size": 16}, form="nvfp4-pack-quantized")) == 256 * 256 + 256 * 32 + 4


def test_blocks_that_are_not_filled_have_a_scale_too():
    quantized = QuantizedMatrix(8, 32, 128, 128)
    assert quantized.matrix_bytes(129, 128) == 129 * 128 + 2 * 4
    assert quantized.matrix_bytes(1, 1) == 1 + 4


@pytest.mark.parametrize(
    ("module", "quantized"),
    [
        ("layers.0.self_attn.q_proj", False),
        ("layers.11.self_attn.q_proj", True),
        ("layers.1.mlp.gate", False),
        ("layers.1.mlp.gate_proj", True),
        ("layers.1.mlp.experts", True),
        ("layers.1.mlp.experts.7.up_proj", True),
        ("lm_head", False),
    ],
)
def test_modules_are_left_out_by_name(module, quantized):
    left_out = ["lm_head", "model.layers.0.self_attn", "layers.1.self_attn.q_proj"]
    stored = {"quant_method": "fp8", "modules_to_not_convert": left_out}
    assert (read_quantization({"quantization_config": stored}).storage_of(module) is not None) is quantized


@pytest.mark.parametrize(
    ("stored", "module", "quantized"),
    [
        # AutoAWQ leaves out what has the text anywhere in its name.
        ({"quant_method": "awq", "modules_to_not_convert": ["mlp"]}, "layers.1.mlp.up_proj", None),
        (
            {"quant_method": "awq", "modules_to_not_convert": ["mlp"]},
            "layers.1.self_attn.q_proj",
            QuantizedMatrix(4, 20, 1, 128),
        ),
        ({"quant_method": "awq", "modules_to_not_convert": ["k_pro"]}, "layers.1.self_attn.k_proj", None),
        # vLLM's name of the setting.
        ({"quant_method": "fp8", "ignored_layers": ["model.layers.1.mlp"]}, "layers.1.mlp.up_proj", None),
        (
            {"quant_method": "fp8", "ignored_layers": ["model.layers.1.mlp"]},
            "layers.2.mlp.up_proj",
            QuantizedMatrix(8, 32),
        ),
        # GPTQModel's rules for single modules: the first pattern that takes one.
        (gptq(**{"-:.*down": {}}), "layers.0.mlp.down_proj", None),
        (gptq(**{"-:.*down": {}}), "layers.0.mlp.up_proj", QuantizedMatrix(4, 20, 1, 64)),
        (gptq(**{"+:.*down": {"bits": 8}}), "layers.0.mlp.down_proj", QuantizedMatrix(8, 24, 1, 64)),
        (gptq(**{r".*\.1\..*down": {"group_size": 32}}), "layers.1.mlp.down_proj", QuantizedMatrix(4, 20, 1, 32)),
        (gptq(**{r".*\.1\..*down": {"group_size": 32}}), "layers.0.mlp.down_proj", QuantizedMatrix(4, 20, 1, 64)),
        (gptq(**{"-:.*mlp": {}, ".*down": {"bits": 8}}), "layers.0.mlp.down_proj", None),
        # compressed-tensors: a name over a pattern, a pattern over a class, in whatever order they stand.
        (two_groups(["Linear"], ["re:.*down_proj"]), "layers.0.mlp.down_proj", QuantizedMatrix(8, 16, 1)),
        (two_groups(["Linear"], ["re:.*down_proj"]), "layers.0.mlp.up_proj", QuantizedMatrix(4, 16, 1, 8)),
        (
            two_groups(["re:.*down_proj"], ["model.layers.0.mlp.down_proj"]),
            "layers.0.mlp.down_proj",
            QuantizedMatrix(8, 16, 1),
        ),
        (two_groups(["Linear"], ["re:.*down_proj"], None), "layers.0.mlp.down_proj", None),
    ],
    ids=repr,
)
def test_each_method_names_modules_in_its_own_way(stored, module, quantized):
    assert read_quantization({"quantization_config": stored}).storage_of(module) == quantized


def test_generic_models_are_counted_by_the_counter(described):
    config = {
        "model_type": "olmo2",
        "architectures": ["Olmo2ForCausalLM"],
        **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
        "vocab_size": 99,
    }
    request = AnalysisConfig(seq_len=7, new_tokens=4)
    plain = analyze_model(described(config), request)
    stored = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.0"]}
    model = described(config | {"quantization_config": stored})
    report = analyze_model(model, request)
    assert report["agreement"]["equal"]
    # Layers 1 and 2 in one byte a weight, and a scale of four bytes for each of seven matrices; layer 0 in two.
    matrices = 4 * 64 * 64 + 3 * 64 * 96
    saved = 2 * (matrices - 4 * 7)
    assert plain["stages"]["prefill"]["bytes_read"] - report["stages"]["prefill"]["bytes_read"] == saved
    assert plain["total"]["weight_bytes"] - report["total"]["weight_bytes"] == saved
    assert plain["total"]["flops"] == report["total"]["flops"]


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ({"quant_method": "quip"}, "how quip stores weights is not known here"),
        ({"bits": 4}, "a method that it does not name"),
        (compressed(["W4A16"]) | {"config_groups": {"W4A16": ["Linear"]}}, "what the preset W4A16 stores"),
        (compressed({**INT4, "strategy": "spiral"}), "'spiral' is not known here"),
        (compressed(INT4, form="marlin-24"), "what the format marlin-24 stores is not known here"),
        (compressed(INT4, targets=["Linear", "Embedding"]), "modules are of the class Embedding is not known here"),
        (compressed(INT4) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "the sparsity format sparse-24-bit"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp"]}, "not stored alike in all layers"),
    ],
    ids=str,
)
def test_what_is_not_known_is_counted_like_the_rest_and_said(described, stored, why):
    config = {
        "model_type": "llama",
        **{"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
        **{"vocab_size": 99, "max_position_embeddings": 256},
    }
    model = described(config | {"quantization_config": stored})
    (note,) = model.notes
    assert "in the data type of the workload, since" in note
    assert why in note
    report = estimate_model(model, AnalysisConfig(seq_len=7, new_tokens=4))
    plain = estimate_model(described(config), AnalysisConfig(seq_len=7, new_tokens=4))
    assert report["total"] == plain["total"]


#: What each kind of setting cannot be.
NO_BITS = (-4, 0, 33, 10**400, 4.7, 4.0, True, "4", [4], {})
NO_SIZE = (0, -2, 2**31, 10**400, 128.0, True, "128", [128], {})
NO_FLAG = (0, 1, "false", [], {})
NO_TEXTS = ("lm_head", 5, True, {}, [5], [None], [["lm_head"]])
NO_TEXT = (5, True, [], {}, ["fp8"])
NO_BLOCK = (
    "128",
    128,
    True,
    {},
    [],
    [128],
    [128] * 3,
    *([size, 128] for size in NO_SIZE),
    *([128, size] for size in NO_SIZE),
)
NO_OBJECT = (5, True, "Linear", 1.5)


def weights(**changed):
    return compressed(INT4 | changed)


WRONG = [
    *((value,) for value in ("fp8", 5, True, [], ["fp8"], 1.5)),
    *(({"quant_method": value},) for value in NO_TEXT),
    *(({"quant_method": "fp8", "weight_block_size": value},) for value in NO_BLOCK),
    *(({"quant_method": "fp8", "scale_fmt": value},) for value in NO_TEXT),
    *(
        ({"quant_method": method, "modules_to_not_convert": value},)
        for method in ("fp8", "mxfp4", "awq")
        for value in NO_TEXTS
    ),
    *(({"quant_method": "fp8", "ignored_layers": value},) for value in NO_TEXTS),
    *((gptq() | {"bits": value},) for value in (1, 5, 6, 16)),
    *((gptq() | {"dynamic": value},) for value in (*NO_OBJECT, [])),
    *((gptq(**{"+:.*": value}),) for value in (*NO_OBJECT, [], {"bits": 5}, {"group_size": 0})),
    *((compressed(INT4) | {"sparsity_config": value},) for value in (*NO_OBJECT, {"format": 5})),
    *(
        ({"quant_method": method, name: value},)
        for method, name in (("awq", "bits"), ("awq", "w_bit"), ("gptq", "bits"))
        for value in NO_BITS
    ),
    *(({"quant_method": "gptq", "bits": 4, "group_size": value},) for value in NO_SIZE),
    *(({"quant_method": "awq", name: value},) for name in ("group_size", "q_group_size") for value in NO_SIZE),
    *(({"quant_method": "awq", "zero_point": value},) for value in NO_FLAG),
    *(({"quant_method": "gptq", "bits": 4, "lm_head": value},) for value in NO_FLAG),
    *(
        ({"quant_method": "gptq", "bits": 4, "modules_in_block_to_quantize": value},)
        for value in (*NO_TEXTS[:-1], ["mlp"], [[5]])
    ),
    ({"quant_method": "gptq"},),
    *((weights(num_bits=value),) for value in NO_BITS),
    *((weights(group_size=value),) for value in NO_SIZE),
    *((weights(symmetric=value),) for value in NO_FLAG),
    *((weights(strategy=value),) for value in NO_TEXT),
    *((weights(strategy="block", block_structure=value),) for value in NO_BLOCK),
    (weights(strategy="block"),),
    *((compressed(value),) for value in (*NO_OBJECT, [INT4])),
    *((compressed(INT4, form=value),) for value in NO_TEXT),
    *((compressed(INT4) | {"ignore": value},) for value in NO_TEXTS),
    *((compressed(INT4) | {"config_groups": value},) for value in (*NO_OBJECT, [], None)),
    *((compressed(INT4) | {"config_groups": {"group_0": value}},) for value in (*NO_OBJECT, None, {"weights": INT4})),
    *((compressed(INT4) | {"config_groups": {"group_0": {"weights": INT4, "targets": value}}},) for value in NO_TEXTS),
]


@pytest.mark.parametrize("of_text", [False, True])
@pytest.mark.parametrize("stored", [stored for (stored,) in WRONG], ids=repr)
def test_a_setting_that_cannot_be_is_refused_by_name(stored, of_text):
    config = {"text_config": {"quantization_config": stored}} if of_text else {"quantization_config": stored}
    with pytest.raises(StagemeterError, match=r"^config\.json[:,] .*quantization_config") as refused:
        read_quantization(config, "config.json")
    assert not isinstance(refused.value, UnknownStorageError)
    assert "\n" not in str(refused.value)


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_any_value_of_any_setting_is_read_or_refused(method, data):
    """Whatever stands in a configuration, no matrix takes less than nothing, and no error is one of Python's."""
    stored = json.loads(json.dumps(METHODS[method]))
    places = list(_places(stored))
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
    try:
        found = read_quantization({"quantization_config": stored})
    except StagemeterError:
        return
    for rule in () if found is None else found.rules:
        assert rule.quantized is None or rule.quantized.matrix_bytes(256, 512) > 0


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def _places(value):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def test_a_model_whose_quantization_cannot_be_is_refused(described):
    with pytest.raises(StagemeterError, match=r"config\.json, quantization_config: bits is -4\. It must be"):
        described({"model_type": "llama", "quantization_config": {"quant_method": "awq", "bits": -4}} | SMALL_LLAMA)


def test_nothing_is_said_about_what_fits_where_storage_is_not_known(described):
    request, peak = AnalysisConfig(seq_len=7), device_peak(find_device("H100-SXM"), "bfloat16")
    for stored, known in (({"quant_method": "quip"}, False), (METHODS["awq"], True), (None, True)):
        model = described({"model_type": "llama", "quantization_config": stored} | SMALL_LLAMA)
        report = estimate_model(model, request)
        found = roofline_section(report, model.family, model.architecture, peak, model.weights_known)
        assert model.weights_known is known
        assert found["memory"]["fits"] is (True if known else None)
        assert (found["memory"]["largest_batch_size"] is None) is not known
        assert any("how the checkpoint stores its weights is not known" in note for note in found["notes"]) is not known
        assert not report_fault({**report, "roofline": found})


@pytest.mark.parametrize("name", [*PUBLISHED_BYTES, "minimax-m2", "deepseek-v3", "kimi-k2.5"])
def test_memory_is_that_of_the_weights_that_are_stored(name):
    model = describe_model(name)
    report = estimate_model(model, AnalysisConfig(model=name))
    section = roofline_section(
        report, model.family, model.architecture, device_peak(find_device("H100-SXM"), "bfloat16")
    )
    assert section["memory"]["weights_bytes"] == report["total"]["weight_bytes"] < 2 * report["total"]["params"]
    fits = report["total"]["weight_bytes"] < 80e9
    assert section["memory"]["fits"] is fits
    assert (section["throughput"]["tokens_per_second"] is not None) is fits


def test_unquantized_weights_have_no_note(described):
    assert describe_model("llama-3.1-8b").notes == ()
    assert read_quantization({"quantization_config": None}) is None
    with pytest.raises(StagemeterError):
        read_quantization({"quantization_config": {"quant_method": "quip"}})


def test_copies_of_a_quantized_weight_stay_quantized():
    from stagemeter.core.module_attributes import QUANTIZED
    from stagemeter.counting.call_cost import Operands

    model = torch.nn.Linear(64, 32, bias=False, device="meta")
    setattr(model, QUANTIZED, QuantizedMatrix(4, 16, 1, 32))
    operands = Operands(model)
    copy = model.weight.detach().clone()
    assert operands.quantized_bytes(copy, copy.numel()) is None
    operands.follow(model.weight, copy)
    assert operands.quantized_bytes(copy, copy.numel()) == 32 * 32 + 2 * 32 * 2
    assert operands.read(copy) == ("weight", 32 * 64)
