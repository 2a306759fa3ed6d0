"""Runs of other models than DeepSeek-OCR: their params, and the metrics of their stages."""

import json

import mlflow
import pytest
from mlflow import MlflowClient

from stagemeter import AnalysisConfig, describe_model, estimate_model, log_static_report, pair_runs
from stagemeter.application.import_profile import Source, import_profile

COMMON = {
    "seq_len": "none",
    "new_tokens": "512",
    "batch_size": "1",
    "dtype": "bfloat16",
    "decode_context": "auto",
}
PAGE = {
    "text_tokens": "10",
    "mode": "own",
    "image": "none",
    "image_width": "1654",
    "image_height": "2339",
    "global_views": "1",
}
PARAMS = {
    "llama-3.1-8b": {"mode": "text", "text_tokens": "1024", "prompt_tokens": "1024"},
    "internvl3-1b": PAGE
    | {"base_size": "448", "image_size": "448", "local_views": "6", "tile_grid": "2x3"}
    | {"image_tokens": "1792", "prompt_tokens": "1802"},
    "qwen2.5-vl-7b": PAGE
    | {"view_size": "1652x2352", "local_views": "0", "tile_grid": "1x1"}
    | {"image_tokens": "4956", "prompt_tokens": "4966"},
}


@pytest.mark.parametrize("model", PARAMS)
def test_run_says_what_the_model_was_asked(experiment, model):
    mlflow.set_experiment(experiment)
    report = estimate_model(describe_model(model), AnalysisConfig(model=model))
    run = MlflowClient().get_run(log_static_report(report))
    assert run.data.params == COMMON | {"model": model} | PARAMS[model]
    stages = [name.removeprefix("params/") for name in run.data.metrics if name.startswith("params/")]
    assert set(stages) == {*report["stages"], "other", "total", "active"}
    assert run.data.metrics["flops/total"] == report["total"]["flops"]
    page = "" if PARAMS[model]["mode"] == "text" else "1654x2339 "
    assert run.info.run_name == f"{page}{PARAMS[model]['prompt_tokens']}+512 tokens, {model}"


TIMES = {"prefill": [300.0, 310.0], "decode": [15.0, 15.2]}


@pytest.fixture
def times(tmp_path):
    """Write a file of times."""
    path = tmp_path / "times.json"
    path.write_text(json.dumps(TIMES))
    return Source(files=(str(path),), device="A100-80GB")


@pytest.mark.parametrize(("seq_len", "new_tokens"), [(2048, 100), (1000, 50)], ids=["as counted", "by closed form"])
def test_times_of_a_language_model_become_its_utilization(experiment, times, seq_len, new_tokens):
    mlflow.set_experiment(experiment)
    described = describe_model("mistral-7b-v0.1")
    counted = AnalysisConfig(model=described.name, seq_len=2048, new_tokens=100)
    log_static_report(estimate_model(described, counted))
    measured = AnalysisConfig(model=described.name, seq_len=seq_len, new_tokens=new_tokens)
    profile = import_profile(measured, times, experiment=experiment)
    pairing = pair_runs(profile.run_id)

    report = estimate_model(described, measured)
    expected = report["stages"]["prefill"]["flops"] / (0.305 * 312e12)
    assert pairing["stages"]["prefill"]["mfu"] == pytest.approx(expected)
    assert set(pairing["stages"]) == {"prefill", "decode", "total"}
    assert not pairing["missing"]
    seconds = (305 + 15.1 * (new_tokens - 1)) / 1e3
    assert pairing["stages"]["total"]["mfu"] == pytest.approx(report["total"]["flops"] / (seconds * 312e12))
    run = MlflowClient().get_run(profile.run_id)
    assert run.data.metrics["mfu/prefill"] == pytest.approx(expected)
    assert not [name for name in run.data.metrics if "pages" in name or "vision" in name]


def test_one_forward_pass_is_the_prefill(experiment, tmp_path):
    mlflow.set_experiment(experiment)
    config = AnalysisConfig(model="qwen3-0.6b", seq_len=64, new_tokens=4)
    log_static_report(estimate_model(describe_model(config.model), config))
    (tmp_path / "times.json").write_text(json.dumps({"forward": [20.0], "decode": [5.0]}))
    source = Source(files=(str(tmp_path / "times.json"),), device="A100-80GB")
    pairing = pair_runs(import_profile(config, source, experiment=experiment).run_id)
    assert pairing["stages"]["forward"]["flops"] == pairing["counts"]["flops"]["prefill"]
    assert pairing["stages"]["total"]["time_ms"] == pytest.approx(35)
    assert pairing["missing"] == {"prefill": "no time of its own: it was timed as part of forward"}
