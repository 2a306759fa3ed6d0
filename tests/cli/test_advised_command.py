"""For every model, the command that a message advises asks for the work that the message is about."""

import shlex
from functools import cache

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, describe_model
from stagemeter.analysis.advice import analyze_command, workload_config
from stagemeter.analysis.requests import plan_request
from stagemeter.cli.analyze import analyze
from stagemeter.cli.workload import read_config
from stagemeter.models.families.deepseek_ocr.modes import MODES
from stagemeter.models.files import shipped_models
from stagemeter.models.generic.shipped import shipped_without_family
from stagemeter.models.pages.settings import OPTIONS

#: Parameters of the command that say nothing of the workload.
OTHERS = ("config_file", "estimate", "strict", "device", "output_dir", "experiment", "run_name", "no_track", "as_json")
described = cache(describe_model)

ASKED = {
    "image_w": st.integers(30, 4000),
    "image_h": st.integers(30, 4000),
    "text_tokens": st.integers(1, 3000),
    "seq_len": st.none() | st.integers(1, 20_000),
    "new_tokens": st.integers(1, 3000),
    "batch_size": st.integers(1, 64),
    "dtype": st.sampled_from(["bfloat16", "float16", "float32"]),
    "kv_cache_dtype": st.sampled_from([None, "bfloat16", "float8_e4m3fn"]),
    "decode_context": st.sampled_from(["auto", "max", 77]),
}
SIZES = st.sampled_from([{"mode": mode} for mode in MODES]) | st.fixed_dictionaries(
    {
        "base_size": st.sampled_from([512, 640, 1024, 1088]),
        "image_size": st.sampled_from([320, 640, 1024]),
        "crop_mode": st.booleans(),
    }
)


def asked_by(command: str) -> AnalysisConfig:
    """Return the configuration that a command line makes."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("stagemeter", "analyze")
    parameters = analyze.make_context("analyze", words).params
    options = {key: value for key, value in parameters.items() if key not in OTHERS}
    return read_config(AnalysisConfig, {"config_file": None, **options})


def _by_cost(model: str) -> object:
    # A model without a family is built and run to find out what a page becomes.
    return pytest.param(model, marks=pytest.mark.slow) if model in shipped_without_family() else model


@pytest.mark.parametrize("model", [_by_cost(model) for model in shipped_models()])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.fixed_dictionaries(ASKED), SIZES, st.sampled_from([None, None, 4, 9]))
def test_command_asks_for_the_same_work(model, asked, sizes, frames):
    config = AnalysisConfig(model=model, **asked, **sizes, video_frames=frames)
    try:
        workload = plan_request(config, described(model))
    except StagemeterError:
        # Videos and pages that this model does not take are refused, and nothing is advised about them.
        assume(False)
        return
    command = analyze_command(model, workload)
    again = plan_request(asked_by(command), described(model))
    assert again.hashed_fields() == workload.hashed_fields(), command
    assert again.hash == workload.hash
    counted = plan_request(AnalysisConfig(**workload_config(model, workload)), described(model))
    assert counted.hash == workload.hash


@pytest.mark.parametrize(
    ("model", "limits"),
    [
        ("qwen2.5-vl-7b", {"max_pixels": 1003520}),
        ("qwen2.5-vl-7b", {"min_pixels": 800_000}),
        ("deepseek-ocr", {"max_tiles": 6}),
    ],
)
def test_limits_of_pages_are_part_of_the_command(model, limits):
    config = AnalysisConfig(model=model, image_w=800, image_h=2400, **limits)
    workload = plan_request(config, described(model))
    # A run of the MLflow project has a param for each limit, given or not.
    params = {**dict.fromkeys(OPTIONS, "none"), **{name: str(limit) for name, limit in limits.items()}}
    assert analyze_command(model, workload, params) == analyze_command(model, workload, limits)
    again = plan_request(asked_by(analyze_command(model, workload, limits)), described(model))
    assert again.hash == workload.hash


def test_what_is_a_default_is_left_out():
    workload = plan_request(AnalysisConfig(), described("deepseek-ocr"))
    assert analyze_command("deepseek-ocr", workload) == "stagemeter analyze"
    small = plan_request(
        AnalysisConfig(model="deepseek-ocr-small", mode="tiny", new_tokens=4), described("deepseek-ocr-small")
    )
    assert analyze_command("deepseek-ocr-small", small) == "stagemeter analyze --scale small --mode tiny --new-tokens 4"
    text = plan_request(AnalysisConfig(model="llama-3.1-8b", kv_cache_dtype="float8_e4m3fn"), described("llama-3.1-8b"))
    assert (
        analyze_command("llama-3.1-8b", text)
        == "stagemeter analyze --model llama-3.1-8b --seq-len 1024 --kv-cache-dtype float8_e4m3fn"
    )
    spaced = analyze_command("my models/config.json", text)
    assert "--model 'my models/config.json'" in spaced
