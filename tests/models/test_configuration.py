"""Configurations are completed as transformers completes them: held to its own classes, and to what they build."""

import copy
import json
import runpy
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, logging

from stagemeter.analysis.analyze import analyze_model, estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.errors import StagemeterError
from stagemeter.models.bounds import require_bounded
from stagemeter.models.build import build_without_weights
from stagemeter.models.configuration import FILE, complete
from stagemeter.models.families import families, family_of
from stagemeter.models.family import all_parameters
from stagemeter.models.lookup import describe_model

SCRIPT = Path(__file__).parents[2] / "docs" / "defaults.py"
TYPES = json.loads(FILE.read_text(encoding="utf-8"))["types"]
#: What is shipped, but for DeepSeek-OCR in the layout of its authors, which transformers has no class for.
SHIPPED = {
    name: json.loads(path.read_text(encoding="utf-8"))
    for family in families().values()
    for name, path in family.shipped.items()
    if not name.startswith("deepseek-ocr") or name == "deepseek-ocr-2"
}
#: Types that a family takes, whole models first of all.
WHOLE = [kind for kind in TYPES if family_of(complete({"model_type": kind}, kind), kind) is not None]
#: Defaults of transformers that make no model that could run, or none that this family counts, and what is said of it.
REFUSED = {
    "deepseek_ocr2": "downsample_channels is [512, 896]. It must hold two numbers, the second 4096",
    "gemma3": "vision_use_head is True",
    "gemma4": "vision_config is null or missing, so the model reads only text",
    "glm_ocr": "out_hidden_size is 1536. It must be 1024, the width of the decoder",
    "idefics3": "scale_factor is 2. It must divide the 7 patches per side of a view",
    "llama4": "intermediate_size is 5632. It must be 3072, the width of what it is joined to",
    "minicpm_ocr": "image_token_id is missing or null",
    "qwen2_5_vl": "out_hidden_size is 3584. It must be 8192, the width of the decoder",
    "qwen2_vl": "hidden_size is 3584. It must be 8192, the width of the decoder",
    "qwen3_5": "out_hidden_size is 3584. It must be 4096, the width of the decoder",
    "qwen3_5_moe": "out_hidden_size is 3584. It must be 2048, the width of the decoder",
    "qwen3_vl": "out_hidden_size is 3584. It must be 4096, the width of the decoder",
    "qwen3_vl_moe": "out_hidden_size is 3584. It must be 2048, the width of the decoder",
    "smolvlm": "scale_factor is 2. It must divide the 7 patches per side of a view",
}
#: What checkpoints of these types hold beside parameters, and transformers keeps apart: counted as parameters.
COUNTED_BUFFERS = ("e_score_correction_bias", "layer_scalar")
#: CLIP's patch embedding, which DeepSeek-OCR's checkpoints hold and transformers' class leaves out.
UNUSED_BY_CLIP = 602_112


@pytest.fixture(autouse=True)
def quiet():
    before = logging.get_verbosity()
    logging.set_verbosity(60)
    yield
    logging.set_verbosity(before)


def made(config):
    """What transformers makes of a configuration."""
    return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))


def saved(config, whole=False):
    """A configuration of transformers as it saves it, or with all that is a default, too."""
    return json.loads(config.to_json_string(use_diff=not whole))


def plain(value):
    return json.loads(json.dumps(value))


def differences(kind, ours, theirs, path=""):
    """Settings that are not what transformers has, with both values."""
    known = TYPES[kind]
    for key in known["settings"]:
        name = known["renamed"].get(key, key)
        a, b = plain(ours[name]), plain(theirs[name])
        # One number for both sides is as good as two.
        if a != b and not (isinstance(b, list) and b == [a, a]):
            yield path + name, a, b
    if "per_layer_config" in theirs or kind == "gemma4_text":
        layers = {str(int(index)): sizes for index, sizes in theirs.get("per_layer_config", {}).items()}
        own = {key: ours[key] for key in ("head_dim", "num_key_value_heads")}
        given = {
            index: {k: v for k, v in sizes.items() if v != own[k]} for index, sizes in ours["per_layer_config"].items()
        }
        if {index: sizes for index, sizes in given.items() if sizes} != layers:
            yield f"{path}per_layer_config", given, layers
    for key in known["parts"]:
        part = theirs[key]
        if part is None or part["model_type"] not in TYPES:
            assert ours[key] == part
        else:
            yield from differences(part["model_type"], ours[key], part, f"{path}{key}.")


def check(config):
    """Hold a configuration to transformers, in the form that it is in and in those that are saved; False if refused."""
    try:
        theirs = made(config)
    except Exception:
        return False
    truth = theirs.to_dict()
    for form in (config, saved(theirs), saved(theirs, whole=True)):
        assert list(differences(config["model_type"], complete(form, "a configuration"), truth)) == []
    return True


def settings_of(config, path=()):
    """Paths of all settings of a configuration and its parts."""
    for key, value in config.items():
        yield (*path, key)
        if isinstance(value, dict) and ("model_type" in value or key in ("sam_config", "vision_config", "text_config")):
            yield from settings_of(value, (*path, key))


def without(config, path):
    config = copy.deepcopy(config)
    holder = config
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return config


def describe(folder, config):
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return describe_model(str(folder))


def report(folder, config):
    """What a report says of a model whose configuration is given; its places apart."""
    model = describe(folder, config)
    asked = {"image_w": 640, "image_h": 480, "text_tokens": 64} if model.family.reads_pages else {"seq_len": 128}
    document = estimate_model(model, AnalysisConfig(model=str(folder), new_tokens=4, **asked))
    return {key: document[key] for key in ("stages", "total", "other_parameters") if key in document} | {
        "workload": document["metadata"]["workload"]
    }


@pytest.mark.slow
def test_table_is_what_transformers_says():
    assert runpy.run_path(str(SCRIPT))["table"]() == FILE.read_text(encoding="utf-8"), "run python docs/defaults.py"


@pytest.mark.parametrize("kind", TYPES)
def test_defaults_are_those_of_the_class(kind):
    assert check({"model_type": kind})
    assert check(saved(CONFIG_MAPPING[kind](), whole=True)) is (kind != "mamba2")


def test_defaults_with_infinities_are_those_of_the_class():
    # transformers reads its own way of writing them from files alone.
    form = saved(CONFIG_MAPPING["mamba2"](), whole=True)
    assert form["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    completed = complete(form, "a configuration")
    assert completed["time_step_limit"] == [0.0, float("inf")]
    assert list(differences("mamba2", completed, CONFIG_MAPPING["mamba2"]().to_dict())) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_published_configurations_are_completed_as_transformers_loads_them(name):
    assert check(SHIPPED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_each_setting_left_out_is_the_default_of_the_class(name):
    refused = 0
    paths = [path for path in settings_of(SHIPPED[name]) if path not in (("model_type",), ("_source",))]
    for path in paths:
        refused += not check(without(SHIPPED[name], path))
    # Layers that are told apart one by one need their number, and widths the heads that they are split into.
    assert refused <= 2


@pytest.mark.parametrize("kind", TYPES)
def test_null_is_refused_where_transformers_refuses_it(kind):
    for key in [*TYPES[kind]["settings"], *TYPES[kind]["parts"]]:
        config = {"model_type": kind, key: None}
        if check(config):
            continue
        if (kind, key) == ("unlimited_ocr_text", "sliding_window"):
            # Refused by a rule of the class, and not since it is null.
            continue
        with pytest.raises(StagemeterError, match=f"{key} is null, which transformers' {TYPES[kind]['class']} refuses"):
            complete(config, "a configuration")


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("whole", [False, True], ids=["differences", "everything"])
def test_saved_configuration_has_the_report_of_the_published_one(name, whole, tmp_path):
    published = report(tmp_path, SHIPPED[name])
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert report(tmp_path, saved(theirs, whole)) == published
    # Nothing names a class, as in what a configuration alone is saved as.
    nameless = {key: value for key, value in saved(theirs, whole).items() if key != "architectures"}
    assert report(tmp_path, nameless) == published


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gemma-3-1b", "granite-docling-258m", "mamba2-default", "paddleocr-vl", "qwen3-30b-a3b"]
)
def test_saved_configuration_is_counted_in_three_ways_that_agree(name, tmp_path):
    theirs = made(SHIPPED[name])
    theirs.architectures = None
    theirs.save_pretrained(tmp_path)
    model = describe_model(str(tmp_path))
    asked = {"image_w": 700, "image_h": 500, "text_tokens": 9} if model.family.reads_pages else {"seq_len": 100}
    assert (
        analyze_model(model, AnalysisConfig(model=str(tmp_path), new_tokens=6, **asked))["agreement"]["status"]
        == "equal"
    )


@pytest.mark.parametrize("kind", WHOLE)
def test_class_defaults_are_read_or_refused_in_a_line(kind, tmp_path):
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    if kind not in REFUSED:
        assert report(tmp_path, config)["total"]["flops"] > 0
        return
    with pytest.raises(StagemeterError) as refused:
        describe(tmp_path, config)
    assert REFUSED[kind] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["glm-4.1v-9b", "llama-3.2-11b-vision", "qwen2-vl-7b", "qwen2.5-vl-7b"])
def test_width_of_heads_that_the_code_does_not_read_changes_nothing(name, tmp_path):
    # Published parameters are those without it; transformers builds the same with it.
    published = report(tmp_path, SHIPPED[name])
    config = copy.deepcopy(SHIPPED[name])
    config.get("text_config", config)["head_dim"] = 96
    assert report(tmp_path, config) == published


@pytest.mark.slow
def test_width_of_heads_is_not_read_where_transformers_does_not_read_it(tmp_path):
    config = copy.deepcopy(SHIPPED["qwen2-vl-7b"])
    parameters = []
    for width in (96, 128):
        (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": width}), encoding="utf-8")
        built = build_without_weights(AutoConfig.from_pretrained(tmp_path))
        parameters.append(sum(parameter.numel() for parameter in built.parameters()))
    assert parameters[0] == parameters[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind not in REFUSED])
def test_class_defaults_have_the_parameters_that_transformers_builds(kind, tmp_path):
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    built = build_without_weights(AutoConfig.from_pretrained(tmp_path))
    theirs = sum(parameter.numel() for parameter in built.parameters())
    theirs += sum(buffer.numel() for name, buffer in built.named_buffers() if name.endswith(COUNTED_BUFFERS))
    theirs += UNUSED_BY_CLIP * (kind == "unlimited_ocr")
    model = describe_model(str(tmp_path))
    assert all_parameters(model.family, model.architecture) == theirs


TIED = [kind for kind in WHOLE if "text_config" in TYPES[kind]["parts"] and kind not in REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TIED)
def test_tied_embeddings_are_those_that_transformers_ties(kind, tmp_path):
    for top in (None, True, False):
        for part in (None, True, False):
            config = saved(CONFIG_MAPPING[kind]())
            for holder, tied in ((config, top), (config["text_config"], part)):
                holder.pop("tie_word_embeddings", None)
                if tied is not None:
                    holder["tie_word_embeddings"] = tied
            if (kind == "florence2" and False in (top, part)) or (kind == "unlimited_ocr" and top):
                with pytest.raises(StagemeterError, match="tie_word_embeddings is"):
                    describe(tmp_path, config)
                continue
            model = describe(tmp_path, config)
            built = build_without_weights(AutoConfig.from_pretrained(tmp_path))
            apart = built.get_output_embeddings().weight is not built.get_input_embeddings().weight
            assert model.family.decoder(model.architecture).tied is not apart, (top, part)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "llama", "hidden_size": None},
            "config.json: hidden_size is null, which transformers' LlamaConfig refuses. Leave it out for 4096, or give "
            "a value",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": None}},
            "config.json, text_config: vocab_size is null",
        ),
        (
            {"model_type": "vision-encoder-decoder", "encoder": 7},
            "config.json, encoder: it is 7. An object of settings",
        ),
        (
            {"model_type": "llama", "per_layer_config": {"03": {"intermediate_size": 7}}},
            "config.json: per_layer_config gives single layers their own intermediate_size, which is not counted",
        ),
        ({"model_type": "llama", "per_layer_config": {"3": 7}}, "per_layer_config is {'3': 7}. Settings by numbers of"),
        ({"model_type": "gemma4_text", "per_layer_config": {"x": {}}}, "per_layer_config has 'x'. Numbers below"),
        (
            {"model_type": "gemma4_text", "per_layer_config": {"30": {}}},
            "per_layer_config has '30'. Numbers below num_hidden_layers, 30, are needed",
        ),
        ({"model_type": "gemma4_text", "layer_types": 3}, "layer_types is 3. It must be a list"),
        (
            {"model_type": "gemma4_text", "per_layer_config": {"1": {"intermediate_size": 7}}},
            "gives layer 1 its own intermediate_size, which is not counted. A layer may change head_dim",
        ),
        (
            {"model_type": "llama", "num_attention_heads": 5},
            "hidden_size 4096 cannot be split into num_attention_heads",
        ),
        (
            SHIPPED["paligemma-3b"] | {"projection_dim": 1024},
            "projection_dim is 1024. It must be 2048, the width of the decoder",
        ),
        (
            json.loads(families()["deepseek-ocr"].shipped["deepseek-ocr"].read_text(encoding="utf-8"))
            | {"tie_word_embeddings": True},
            "tie_word_embeddings is true, but DeepSeek-OCR has an output head of its own",
        ),
        ({"model_type": "mamba2", "expand": {"__float__": "Infinity"}}, "expand is inf. It must be a number above 0"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": ["x"]}, "It must be a list of layer numbers"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 3}, "mlp_only_layers is 3. It must be a list"),
        ({"model_type": "qwen3_next", "layer_types": 3}, "layer_types is 3. It must be a list"),
        *[
            ({"model_type": "mllama", "vision_config": {"model_type": "mllama_vision_model", key: value}}, message)
            for key, value, message in (
                ("supported_aspect_ratios", ["x"], "config.json, vision_config: supported_aspect_ratios is ['x']. It"),
                ("supported_aspect_ratios", [[1, 1], [1]], "supported_aspect_ratios is [[1, 1], [1]]. It must list"),
                ("supported_aspect_ratios", [[1, -1]], "supported_aspect_ratios is [[1, -1]]. It must list"),
                ("intermediate_layers_indices", [3, -1], "intermediate_layers_indices is [3, -1]. It must be a list"),
                ("intermediate_layers_indices", [3, 99], "intermediate_layers_indices is [3, 99]. It must be a list"),
            )
        ],
        (
            {
                "model_type": "mllama",
                "text_config": {"model_type": "mllama_text_model", "cross_attention_layers": [-1]},
            },
            "config.json, text_config: cross_attention_layers is [-1]. It must be a list of layer numbers",
        ),
        ({"model_type": "minimax_m2", "use_qk_norm": "x"}, "config.json: use_qk_norm is 'x'. It must be true or false"),
        (
            {"model_type": "got_ocr2", "vision_config": {"qkv_bias": 0}},
            "config.json, vision_config: qkv_bias is 0. It must be true or false",
        ),
        (
            {"model_type": "llama4", "vision_config": {"pixel_shuffle_ratio": 5e-324}},
            "config.json, vision_config: pixel_shuffle_ratio is 5e-324. One over it must divide",
        ),
        (
            {"model_type": "llama4", "vision_config": {"pixel_shuffle_ratio": True}},
            "config.json, vision_config: pixel_shuffle_ratio is True. It must be a number above 0",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(config, message, tmp_path):
    with pytest.raises(StagemeterError) as refused:
        describe(tmp_path, config)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("language_config", "n_routed_experts"), "x", "language_config: n_routed_experts is 'x'. It must be a whole"),
        (("language_config", "first_k_dense_replace"), "1", "language_config: first_k_dense_replace is '1'. It must"),
        (("language_config", "use_mla"), [], "language_config: use_mla is []. It must be true or false"),
        (("vision_config", "image_size"), -1, "vision_config: image_size is -1. It must be a whole number"),
        (
            ("vision_config", "width", "sam_vit_b", "downsample_channels"),
            [512],
            "vision_config, width, sam_vit_b: downsample_channels is [512]. It must hold two numbers",
        ),
        (
            ("vision_config", "width", "sam_vit_b"),
            3,
            "vision_config, width: sam_vit_b is 3. It must be an object of settings",
        ),
    ],
)
def test_settings_of_deepseek_ocr_are_refused_by_their_names(path, value, message, tmp_path):
    config = json.loads(families()["deepseek-ocr"].shipped["deepseek-ocr"].read_text(encoding="utf-8"))
    holder = config
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(StagemeterError) as refused:
        describe(tmp_path, config)
    assert message in str(refused.value)


#: What no setting should be, or few.
WRONG = (None, "x", -1, 0, 1.5, [], {}, True, [None], [[1, 2]], {"3": {"head_dim": 3}}, float("inf"), float("nan"))


@pytest.mark.parametrize("name", SHIPPED)
def test_wrong_values_are_read_or_refused_in_a_line(name):
    # Not a word of a traceback: each setting in turn is each wrong value.
    refusals = []
    for path in settings_of(SHIPPED[name]):
        for value in WRONG:
            config = copy.deepcopy(SHIPPED[name])
            holder = config
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
            try:
                require_bounded(config, name)
                settings = complete(config, name)
                taker = family_of(settings, name)
                if taker is not None:
                    taker.architecture_from_config(settings, name)
            except StagemeterError as error:
                refusals.append(str(error))
    assert len(refusals) > 50
    assert not any("\n" in refusal for refusal in refusals)


def test_parts_of_a_whole_that_is_not_known_are_completed():
    part = {"model_type": "qwen3", "hidden_size": 64}
    completed = complete({"model_type": "of_a_package", "text_config": part, "other": {"size": 3}}, "a configuration")
    assert completed["text_config"] == complete(part, "a configuration") != part
    assert completed["other"] == {"size": 3}


def test_older_names_are_those_of_transformers():
    completed = complete({"model_type": "qwen3_moe", "num_experts": 7, "num_local_experts": 9}, "a configuration")
    assert (
        completed["num_local_experts"]
        == made({"model_type": "qwen3_moe", "num_experts": 7, "num_local_experts": 9}).num_experts
    )
    assert "num_experts" not in completed


@pytest.mark.parametrize("kind", ["paddleocr_vl", "qwen2_vl", "qwen2_5_vl"])
def test_settings_of_the_language_model_beside_the_others_are_its_own(kind):
    flat = {"model_type": kind, "hidden_size": 640, "num_hidden_layers": 3, "tie_word_embeddings": False}
    assert check(flat)
    assert complete(flat, "a configuration")["text_config"]["hidden_size"] == 640


def test_first_checkpoint_of_unlimited_ocr_is_read():
    first = {"model_type": "unlimited_ocr", "language_config": {"hidden_size": 640}, "sliding_window": 64}
    assert check(first)
    assert complete(first, "a configuration")["text_config"]["sliding_window"] == 64


def test_other_name_of_kimis_language_model_is_read():
    assert check({"model_type": "kimi_k25", "text_config": {"model_type": "kimi_k2", "n_routed_experts": 8}})
