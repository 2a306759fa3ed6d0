"""The contents of an MLflow run with a report."""

import json
import re

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from PIL import Image

from stagemeter import log_static_report
from stagemeter.tracking.labels import workload_name
from stagemeter.tracking.store import charts_link

STAGES = ["sam", "clip", "projector", "prefill", "decode"]


@pytest.fixture
def logged(report, experiment):
    """Return the run that the report was logged to."""
    mlflow.set_experiment(experiment)
    return MlflowClient().get_run(log_static_report(report))


def test_run_is_finished_and_the_only_one(logged, runs):
    assert [run.info.run_id for run in runs()] == [logged.info.run_id]
    assert logged.info.status == "FINISHED"
    assert mlflow.active_run() is None


def test_params_are_the_configuration(logged):
    assert logged.data.params == {
        "model": "deepseek-ocr",
        "mode": "custom",
        "base_size": "128",
        "image_size": "64",
        "crop_mode": "True",
        "seq_len": "none",
        "text_tokens": "10",
        "new_tokens": "40",
        "batch_size": "1",
        "dtype": "bfloat16",
        "decode_context": "auto",
        "image": "none",
        "image_width": "100",
        "image_height": "150",
        "global_views": "1",
        "local_views": "6",
        "tile_grid": "2x3",
        "image_tokens": "16",
        "prompt_tokens": "26",
    }


@pytest.mark.parametrize("quantity", ["params", "flops"])
def test_metrics_of_every_stage_are_exact(logged, report, quantity):
    metrics = logged.data.metrics
    for stage in STAGES:
        assert metrics[f"{quantity}/{stage}"] == report["stages"][stage][quantity]
    assert metrics[f"{quantity}/total"] == report["total"][quantity]


def test_run_has_each_quantity_once_and_the_total_first(logged, report):
    """MLflow's page of a comparison opens with the metric that was logged first."""
    metrics, total = logged.data.metrics, report["total"]
    assert next(iter(metrics)) == "flops/total"
    assert {name for name in metrics if name.startswith(("flops_", "macs", "activations", "tokens"))} == {
        "flops_causal/total",
        "flops_executed/total",
    }
    assert metrics["flops_causal/total"] == total["flops_causal"]
    assert len(metrics) <= 28
    assert len([tag for tag in logged.data.tags if tag.startswith("stagemeter.")]) <= 10


def test_bytes_are_those_read_and_written(logged, report):
    metrics, total = logged.data.metrics, report["total"]
    for stage in STAGES:
        assert (
            metrics[f"bytes/{stage}"]
            == report["stages"][stage]["bytes_read"] + report["stages"][stage]["bytes_written"]
        )
    assert metrics["bytes/total"] == total["bytes_read"] + total["bytes_written"]


def test_parts_of_a_section_add_up_to_its_total(logged):
    metrics = logged.data.metrics
    for quantity in ("flops", "bytes"):
        # `decode` is one step; the request has `decode_total` of it.
        parts = [metrics[f"{quantity}/{part}"] for part in ("sam", "clip", "projector", "prefill", "decode_total")]
        assert sum(parts) == metrics[f"{quantity}/total"]
    parameters = [metrics[f"params/{part}"] for part in (*STAGES, "other")]
    assert sum(parameters) == metrics["params/total"]


def test_decode_curve_has_the_context_as_its_step(logged, report):
    history = MlflowClient().get_metric_history(logged.info.run_id, "decode_curve/flops")
    points = [(point.step, point.value) for point in sorted(history, key=lambda point: point.step)]
    assert points == [(point["context"], point["flops"]) for point in report["decode_curve"]]
    assert (points[0][0], points[-1][0]) == (27, 26 + 39)
    assert points[0][1] < points[-1][1]


def test_tags_say_what_was_counted_and_how(logged, report):
    tags, metadata = logged.data.tags, report["metadata"]
    assert tags["stagemeter.kind"] == "static"
    assert tags["stagemeter.model"] == "deepseek-ocr"
    assert tags["stagemeter.workload_hash"] == metadata["workload_hash"]
    assert tags["stagemeter.schema_version"] == report["schema_version"]
    assert tags["stagemeter.agreement"] == "equal"
    for package in ("stagemeter", "torch", "transformers", "fvcore", "mlflow"):
        assert f"{package} {metadata['versions'][package]}" in tags["stagemeter.versions"].split(", ")


def test_description_has_the_table_of_stages(logged):
    description = logged.data.tags[MLFLOW_RUN_NOTE]
    headline, _, header, _, flops, share, *_ = description.splitlines()
    assert re.fullmatch(r"\*\*[\d.]+ .?FLOPs\*\* a request, [\d.]+ .?FLOPs before the first token\.", headline)
    titles = [cell.strip() for cell in header.replace("\u00a0", " ").strip("|").split("|")]
    assert titles == ["Stage", "sam", "clip", "projector", "prefill", "decode x 39", "**total**"]
    assert (flops[:6], share[:6]) == ("|FLOPs", "|Share")


def test_artifacts_are_the_files_the_table_and_the_chart(logged, report, tmp_path):
    run_id = logged.info.run_id
    names = {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}
    files = {"static_compute.json", "static_compute.md", "static_compute_fvcore.md"}
    assert names == files | {"flops_per_stage.png", "stages.json"}
    folder = mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "static_compute.json").read_text()) == report
    assert Image.open(tmp_path / "back" / "flops_per_stage.png").format == "PNG"
    assert folder


def test_table_has_a_row_per_stage(logged, report):
    table = mlflow.load_table("stages.json", run_ids=[logged.info.run_id])
    assert list(table["stage"]) == STAGES
    assert list(table["params"]) == [report["stages"][stage]["params"] for stage in STAGES]
    assert table["flops"].sum() == report["total"]["flops"]
    assert table["share"].sum() == pytest.approx(1, abs=0.001)
    assert set(table["agreement"]) == {"3 of 3"}


def test_picture_of_the_page_is_logged_where_there_is_one(report, experiment):
    mlflow.set_experiment(experiment)
    run_id = log_static_report(report, Image.new("RGB", (20, 30), "white"))
    assert "page.png" in {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}


def test_active_run_of_the_caller_is_used_and_left_open(report, experiment, runs):
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name="mine") as mine:
        mlflow.log_param("learning_rate", 0.1)
        assert log_static_report(report) == mine.info.run_id
        assert mlflow.active_run().info.run_id == mine.info.run_id
    (run,) = runs()
    assert run.info.run_name == "mine"
    assert run.data.params["learning_rate"] == "0.1"
    assert run.data.metrics["flops/total"] == report["total"]["flops"]


def test_same_report_can_be_logged_twice(report, experiment, runs):
    mlflow.set_experiment(experiment)
    assert log_static_report(report) != log_static_report(report)
    assert [run.info.status for run in runs()] == ["FINISHED"] * 2


def test_run_is_named_by_what_differs(logged, report):
    assert logged.info.run_name == "custom 26+40 tokens, deepseek-ocr"


PAGE = {"image_width": 800, "image_height": 600, "mode": "base", "global_views": 1, "local_views": 0, "base_size": 1024}
PAGE |= {"image_size": 1024, "tile_grid": [1, 1], "image_tokens": 273}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "base 283+512 tokens, deepseek-ocr"),
        ({"batch_size": 8}, "base 283+512 tokens batch 8, deepseek-ocr"),
        ({"mode": "own"}, "800x600 283+512 tokens, deepseek-ocr"),
        ({"mode": "text", "global_views": 0}, "283+512 tokens, deepseek-ocr"),
        ({"mode": "own", "further_pages": [PAGE | {"times": 2}]}, "3 pages 283+512 tokens, deepseek-ocr"),
        ({"cached_tokens": 100, "chunk_tokens": 64}, "base 283+512 tokens 100 cached chunks of 64, deepseek-ocr"),
    ],
)
def test_names_of_runs(changes, name):
    workload = PAGE | {"prompt_tokens": 283, "new_tokens": 512, "batch_size": 1} | changes
    assert workload_name("deepseek-ocr", workload) == name
    assert workload_name("models/of/deepseek-ocr", workload) == name


def test_long_name_is_cut():
    workload = PAGE | {"prompt_tokens": 283, "new_tokens": 512, "batch_size": 1}
    name = workload_name("a-model-with-a-very-long-name", workload, "NVIDIA A100-SXM4-80GB")
    assert name == "base 283+512 tokens on NVIDIA A100-SXM4-80GB, …"


def test_link_opens_the_charts_and_says_how_to_serve_them(store):
    link, command = charts_link("7")
    assert link.endswith("/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART")
    assert command == f"mlflow ui --backend-store-uri {store}"


def test_link_to_a_server_needs_no_command(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:8080/")
    link, command = charts_link("7")
    assert link.startswith("http://tracking.example:8080/#/experiments/7/runs?")
    assert command is None


@pytest.mark.parametrize("uri", ["postgresql://me:secret@host/db", "https://me:secret@host"])
def test_password_of_a_store_is_not_printed(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "secret" not in str(charts_link("7"))
