"""Reports of any module as runs: every number, and comparisons."""

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from torch import nn

import stagemeter
from stagemeter import compare_runs
from stagemeter.core.metrics import in_runs, module_values
from stagemeter.core.workload import stable_hash
from stagemeter.modules.report import upgraded


@pytest.fixture
def reports():
    """Return reports of one model as a training step, with inputs of two sizes."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    stages = {"body": "0", "head": "2"}
    return [stagemeter.analyze(model, stagemeter.spec(n, 8), stages=stages, mode="train") for n in (2, 6)]


def test_every_number_is_in_the_run(reports, experiment, runs):
    mlflow.set_experiment(experiment)
    run_id = stagemeter.log_static_report(reports[0])
    (run,) = runs()
    assert run.info.run_id == run_id
    assert (run.info.run_name, run.info.status) == ("Sequential train", "FINISHED")
    assert run.data.metrics == in_runs(module_values(reports[0].to_dict()))
    assert run.data.metrics["flops/body"] == 2 * 2 * (2 * 8 * 16)
    assert run.data.params["inputs"] == "float32[2, 8]"
    assert run.data.params["stages"] == "body: 0; head: 2"
    assert run.data.tags["stagemeter.kind"] == "module"
    assert "|body|144|" in run.data.tags["mlflow.note.content"]
    names = {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}
    assert names == {"module_compute.json", "module_compute.md", "flops.png"}
    kept = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="module_compute.json"))
    assert json.loads(kept.read_text()) == reports[0].to_dict()


def test_active_run_takes_it(reports, experiment):
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run:
        mlflow.log_param("learning_rate", 0.1)
        assert stagemeter.log_static_report(reports[0]) == run.info.run_id
    assert mlflow.get_run(run.info.run_id).data.params["learning_rate"] == "0.1"


def test_two_are_compared_stage_by_stage(reports, experiment):
    mlflow.set_experiment(experiment)
    first, second = map(stagemeter.log_static_report, reports)
    comparison = compare_runs([first, second])
    rows = {row["stage"]: row["ratios"][1] for row in comparison["quantities"]["flops"]["rows"]}
    assert rows == {"body": 3.0, "head": 3.0, "other": None, "total": 3.0}
    assert [row["name"] for row in comparison["configuration"]] == ["inputs"]


def test_numbers_that_a_double_cannot_hold_are_those_of_the_report(experiment):
    """Compare a layer of 2**53 + 2 FLOPs: the run has a double, and its report every digit."""
    wide = stagemeter.analyze(nn.Linear(1, 1, device="meta"), stagemeter.spec(2**52 + 1, 1))
    assert wide.total.flops == 2**53 + 2
    small = stagemeter.analyze(nn.Linear(1, 1, device="meta"), stagemeter.spec(1, 1))
    mlflow.set_experiment(experiment)
    comparison = compare_runs([stagemeter.log_static_report(small), stagemeter.log_static_report(wide)])
    (row,) = comparison["quantities"]["flops"]["rows"][-1:]
    assert row["values"] == [2, 2**53 + 2]


def first_schema(document):
    """Return a document as version 1 of the schema has it: FLOPs of all that ran, and those of checkpointing."""

    def stage(now):
        later = ("macs_causal", "macs_executed", "flops_executed")
        backward = now["flops_backward"]
        return {name: value for name, value in now.items() if name not in later} | {
            "macs": now["macs_executed"],
            "flops": now["flops_executed"],
            "flops_backward": None if backward is None else backward + now["flops_recomputed"],
            "flops_recomputed": None if backward is None else 0,
            "flops_causal": now["flops"] if backward is None else None,
        }

    parts = {name: stage(part) for name, part in document["stages"].items()}
    return document | {
        "schema_version": "1.0", "stages": parts, "other": stage(document["other"]), "total": stage(document["total"])
    }  # fmt: skip


def test_documents_of_the_first_schema_say_what_they_know(reports):
    now = reports[0].to_dict()
    assert upgraded(now) == now
    assert upgraded(first_schema(now)) == now | {
        name: now[name] | {"macs_causal": None, "flops_causal": None} for name in ("other", "total")
    } | {"stages": {name: part | {"macs_causal": None, "flops_causal": None} for name, part in now["stages"].items()}}
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    fused = stagemeter.analyze(layer, stagemeter.spec(2, 5, 8), mode="train").to_dict()
    total = upgraded(first_schema(fused))["total"]
    assert (total["flops"], total["flops_causal"], total["flops_recomputed"]) == (None, None, None)
    assert total["flops_executed"] == fused["total"]["flops_executed"]


def test_run_of_the_first_schema_is_compared_with_one_of_this(reports, experiment):
    mlflow.set_experiment(experiment)
    first, second = map(stagemeter.log_static_report, reports)
    old, client = first_schema(reports[0].to_dict()), MlflowClient()
    client.set_tag(first, "stagemeter.schema_version", "1.0")
    client.set_tag(first, "stagemeter.report_hash", stable_hash(old))
    client.log_dict(first, old, "module_compute.json")
    comparison = compare_runs([first, second])
    rows = {row["stage"]: row["ratios"][1] for row in comparison["quantities"]["flops"]["rows"]}
    assert rows == {"body": 3.0, "head": 3.0, "other": None, "total": 3.0}
    assert any("schema 1.0, which counts executed FLOPs" in note for note in comparison["notes"])
