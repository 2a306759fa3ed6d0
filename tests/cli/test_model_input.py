"""Models that cannot be used: exit code 2, one line that names the setting and the file."""

import json
from pathlib import Path

import pytest

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.models.lookup import describe_model

ROOT = Path(__file__).parents[2]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}
#: What LlamaConfig of transformers has where they are left out.
DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
GPT_OSS = MIXTRAL | {"model_type": "gpt_oss", "sliding_window": 8, "head_dim": 16}


def without(config, key):
    return {name: value for name, value in config.items() if name != key}


@pytest.fixture
def refused(stagemeter, folder):
    """Return the one line that refuses a configuration."""

    def run(config, *options: object) -> str:
        (folder / "config.json").write_text(json.dumps(config))
        ended = stagemeter("analyze", "--model", ".", *options)
        assert (ended.code, ended.out) == (2, "")
        (line,) = ended.err.splitlines()
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        return line.removeprefix("error: ")

    return run


@pytest.mark.parametrize("key", DEFAULTS)
def test_null_setting_is_named_and_its_default_said(refused, key):
    named = f"config.json: {key} is null, which transformers' LlamaConfig refuses. Leave it out for {DEFAULTS[key]}, or"
    assert refused(LLAMA | {key: None}) == f"{named} give a value"


@pytest.mark.parametrize("key", ["intermediate_size", "max_position_embeddings", "num_hidden_layers", "vocab_size"])
def test_missing_setting_is_the_default_of_transformers(estimate, folder, key):
    def sizes(config):
        (folder / "config.json").write_text(json.dumps(config))
        return estimate("--model", ".", "--seq-len", "16")["total"]

    assert sizes(without(LLAMA, key)) == sizes(LLAMA | {key: DEFAULTS[key]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"hidden_size": "64"}, "hidden_size is '64'. It must be a whole number, 1 or more"),
        (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers is 0. It must be a whole number, 1 or more"),
        (LLAMA | {"vocab_size": 1.5}, "vocab_size is 1.5. It must be a whole number, 1 or more"),
        (LLAMA | {"vocab_size": True}, "vocab_size is True. It must be a whole number, 1 or more"),
        (LLAMA | {"mlp_bias": "no"}, "mlp_bias is 'no'. It must be true or false"),
        (LLAMA | {"hidden_size": 66}, "hidden_size 66 cannot be split into num_attention_heads 4"),
        (LLAMA | {"num_key_value_heads": 3}, "num_attention_heads 4 cannot be split into num_key_value_heads 3"),
        (MIXTRAL | {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, but num_local_experts is 4"),
        (GPT_OSS | {"layer_types": ["full_attention"]}, "num_hidden_layers is 2, but layer_types holds 1"),
        (
            GPT_OSS | {"layer_types": ["full_attention", "local"]},
            "layer_types holds 'local'. It may hold full_attention, sliding_attention",
        ),
        (GPT_OSS | {"layer_types": "full_attention"}, "layer_types is 'full_attention'. It must be a list"),
        (GPT_OSS | {"sliding_window": None}, "config.json: sliding_window is null, which gpt_oss needs"),
        (
            LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "x"},
            "max_window_layers is 'x'. It must be a whole number, 0 or more",
        ),
        (
            LLAMA | {"model_type": "qwen2", "use_sliding_window": "yes"},
            "use_sliding_window is 'yes'. It must be true or false",
        ),
    ],
)
def test_contradiction_is_named(refused, config, message):
    assert message in refused(config)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "gpt_os"}, "Near are gpt-oss"),
        ({"model_type": "deepseek_v9"}, "Near are deepseek-v3"),
        (
            {"model_type": "whisper", "architectures": ["WhisperForAll"]},
            "it describes WhisperForAll (model_type",
        ),
        (
            {"model_type": "mine", "auto_map": {"AutoModel": "m.M"}},
            "code of its own (auto_map), which is not run without --trust-remote-code",
        ),
        ({}, "describes no architecture (model_type None), which no family takes"),
    ],
)
def test_unknown_architecture_names_what_is_near(refused, config, named):
    assert named in refused(config)


def test_unknown_name_is_told_the_nearest(stagemeter):
    assert "Did you mean 'llama-3.1-8b'" in stagemeter("analyze", "--model", "llama-3.1-9b").err


def test_unknown_weights_are_not_an_unknown_model(stagemeter):
    assert "--weights: 'nope' is unknown" in stagemeter("profile", "--model", "qwen3-0.6b", "--weights", "nope").err


def test_weights_of_another_family_are_refused(stagemeter):
    ended = stagemeter("profile", "--model", "qwen3-0.6b", "--weights", "unlimited-ocr-default")
    assert (ended.code, ended.out) == (2, "")
    assert "--weights: unlimited-ocr-default are of another model than qwen3-0.6b" in ended.err


def test_a_file_will_do_in_place_of_a_folder(estimate, folder):
    (folder / "mine.json").write_text(json.dumps(LLAMA))
    report = estimate("--model", "mine.json", "--seq-len", "16")
    assert report["metadata"]["family"] == "llama"
    assert report["metadata"]["workload"]["prompt_tokens"] == 16


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ((), 1024),
        (("--text-tokens", "none"), 1024),
        (("--config", str(ROOT / "conf" / "static_analysis" / "default.yaml")), 1024),
        # A given number counts, even one that is the default beside a page.
        (("--text-tokens", "10"), 10),
        (("--text-tokens", "77"), 77),
        (("--seq-len", "10"), 10),
    ],
    ids=str,
)
def test_length_of_a_prompt_without_a_page(estimate, options, tokens):
    report = estimate("--model", "qwen3-0.6b", *options)
    assert report["metadata"]["workload"]["prompt_tokens"] == tokens
    assert any("no length was given" in note for note in report["notes"]) is (tokens == 1024)
    if "--seq-len" not in options:
        # Who analyzes the settings of a report again gets the same workload.
        again = plan_request(AnalysisConfig(**report["metadata"]["config"]), describe_model("qwen3-0.6b"))
        assert again.hash == report["metadata"]["workload_hash"]


@pytest.mark.parametrize(("model", "method"), [("gpt-oss-20b", "mxfp4"), ("deepseek-v3", "fp8"), ("qwen3-8b", None)])
def test_quantized_weights_are_named(estimate, model, method):
    named = [note for note in estimate("--model", model)["notes"] if "quantized" in note]
    assert [f"quantized by {method} are read as" in note for note in named] == ([] if method is None else [True])


def test_models_are_listed(stagemeter):
    table, machine = stagemeter("models").out, json.loads(stagemeter("models", "--json").out)
    for model in machine:
        assert model["name"] in table
        assert model["stages"][-2:] == ["prefill", "decode"]
        assert model["params_active"] <= model["params"]
    assert {"deepseek-ocr", "deepseek-v3"} <= {model["name"] for model in machine}
