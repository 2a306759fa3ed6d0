"""Reports of any module as runs: every number, and comparisons."""

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from torch import nn

import stagemeter
from stagemeter import compare_runs
from stagemeter.core.metrics import module_values


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
    assert run.data.metrics == module_values(reports[0].to_dict())
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
