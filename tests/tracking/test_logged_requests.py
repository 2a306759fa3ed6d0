"""A log of requests in a real store: metrics of its own, both documents, and runs that failed or were interrupted."""

import hashlib
import json
from pathlib import Path

import mlflow
import pytest

from stagemeter import AnalysisConfig, StagemeterError, TrackingError, compare_runs
from stagemeter.application import requests as application
from stagemeter.application.sweep_requests import sweep_requests_and_log
from stagemeter.core.metrics import METRICS, STATIC, log_values
from stagemeter.sweeping.build import SweepSettings

LOG = "prompt_tokens,cached_tokens,output_tokens\n8192,0,512\n8192,8000,512\n300,,40\n"


@pytest.fixture
def logged(experiment, tmp_path):
    def run(content=LOG, model="llama-3.1-8b", **options):
        log = tmp_path / "log.csv"
        log.write_text(content, encoding="utf-8")
        config = AnalysisConfig(model=model, kv_cache_dtype="float8_e4m3fn")
        return application.analyze_requests_and_log(config, log, tmp_path / "out", experiment=experiment, **options)

    return run


def test_run_holds_metrics_params_documents_and_a_note(logged, runs, tmp_path):
    outcome = logged()
    (run,) = runs()
    assert (run.info.run_id, run.info.status, run.info.run_name) == (
        outcome.run_id,
        "FINISHED",
        "log.csv, llama-3.1-8b",
    )
    assert run.data.tags["stagemeter.kind"] == "request_log"
    assert run.data.metrics == log_values(outcome.costs)
    assert run.data.metrics["log_flops/total"] == outcome.costs["total"]["flops"]
    assert run.data.metrics["log_count/requests"] == 3
    assert run.data.params == {
        **{"model": "llama-3.1-8b", "dtype": "bfloat16", "kv_cache_dtype": "float8_e4m3fn", "requests": "3"},
        "chunk_tokens": "none",
        **{"log": "log.csv", "log_format": "CSV", "log_sha256": hashlib.sha256(LOG.encode()).hexdigest()},
    }
    for name in ("requests.json", "requests.md"):
        artifact = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/{name}")
        assert artifact == (tmp_path / "out" / name).read_text(encoding="utf-8")
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("# llama-3.1-8b: 3 requests of log.csv")
    assert all(stage in note for stage in ("prefill", "decode", "total"))


def test_no_metric_mixes_a_request_with_a_log():
    assert [metric.name for metric in METRICS if {STATIC, "request_log"} <= set(metric.readers)] == []


def test_bad_line_fails_the_run_and_an_interrupt_kills_it(logged, runs, monkeypatch):
    with pytest.raises(StagemeterError, match="line 5: cached_tokens 9 are more than"):
        logged(LOG + "5,9,1\n", run_name="mine")
    assert [(run.info.status, run.info.run_name) for run in runs()] == [("FAILED", "mine")]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(application, "costs_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        logged()
    assert sorted(run.info.status for run in runs()) == ["FAILED", "KILLED"]


def test_refused_settings_open_no_run(logged, runs):
    with pytest.raises(StagemeterError, match="does not say which requests have a picture"):
        logged(model="qwen2.5-vl-7b")
    assert runs() == []


def test_files_are_written_before_a_store_fails(logged, monkeypatch, tmp_path):
    def broken(*_):
        raise TrackingError("the store is full. Free it")

    monkeypatch.setattr("stagemeter.tracking.request_log.log_requests", broken)
    outcome = logged()
    assert "The files are written" in str(outcome.tracking_error)
    assert json.loads((tmp_path / "out" / "requests.json").read_text(encoding="utf-8")) == outcome.costs


def test_comparison_refuses_logs(logged):
    with pytest.raises(StagemeterError, match=r"holds the costs of a log.*Compare logs in MLflow"):
        compare_runs([logged().run_id, logged(LOG + "9,0,2\n").run_id])


def test_sweep_of_a_log_is_one_run_with_its_table(experiment, runs, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(LOG, encoding="utf-8")
    settings = SweepSettings(model="llama-3.1-8b", dtype="bfloat16,float32")
    swept = sweep_requests_and_log(settings, log, tmp_path / "sweep.parquet", experiment=experiment)
    (run,) = runs()
    assert (run.info.run_id, run.info.status, run.data.tags["stagemeter.kind"]) == (swept.run_id, "FINISHED", "sweep")
    assert run.data.params["dtype"] == "bfloat16,float32"
    assert run.data.params["log_sha256"] == hashlib.sha256(LOG.encode()).hexdigest()
    assert run.data.metrics == {"sweep/workloads": 2}
    assert "float32" in run.data.tags["mlflow.note.content"]
    stored = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/sweep.parquet")
    assert Path(stored).read_bytes() == swept.output.read_bytes()
