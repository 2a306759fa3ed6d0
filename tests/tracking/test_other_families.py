"""Runs of other models than DeepSeek-OCR: params that say what was asked of them, metrics of their stages."""

import mlflow
import pytest
from mlflow import MlflowClient

from stagemeter import AnalysisConfig, log_static_report
from stagemeter.analyzer import estimate_model
from stagemeter.models.description import describe_model

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
    assert run.info.run_name.startswith(f"{model} {PARAMS[model]['mode']} ")
