"""Comparisons of runs in a real store: how runs are found, full precision, and the comparison as a run."""

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from stagemeter import StagemeterError, compare_runs, estimate_report, log_static_report
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.models.lookup import describe_model
from stagemeter.tracking.runs import find_run

ARCHITECTURE = describe_model("deepseek-ocr").architecture


@pytest.fixture
def logged(experiment):
    """Log a static run in the test's experiment: ``logged("name", mode="tiny")`` gives its id and its report."""

    def run(name: str, **settings) -> tuple[str, dict]:
        report = estimate_report(ARCHITECTURE, "deepseek-ocr", AnalysisConfig(**settings))
        with mlflow.start_run(
            experiment_id=MlflowClient().get_experiment_by_name(experiment).experiment_id, run_name=name
        ):
            return log_static_report(report), report

    return run


def total(comparison: dict, quantity: str = "flops") -> list:
    return next(row["values"] for row in comparison["quantities"][quantity]["rows"] if row["stage"] == "total")


def test_runs_are_found_by_id_beginning_and_name(logged, experiment):
    first, report = logged(f"first of {experiment}", mode="tiny")
    second, other = logged(f"second of {experiment}", mode="base")
    expected = [report["total"]["flops"], other["total"]["flops"]]
    for names in ([first, second], [first[:12], f"second of {experiment}"], [f"first of {experiment}", second[:20]]):
        assert total(compare_runs(names)) == expected
    comparison = compare_runs([first], baseline=second[:16])
    assert [subject["source"] for subject in comparison["subjects"]] == [second, first]


def test_run_and_file_are_compared_alike(logged, tmp_path):
    run, report = logged("in the store", mode="tiny")
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(report))
    comparison = compare_runs([str(file), run], quantities=["flops", "params", "bytes", "activations", "macs"])
    for quantity in comparison["quantities"].values():
        for row in quantity["rows"]:
            assert row["differences"] == [0, 0], row["stage"]
    assert comparison["configuration"] == comparison["environment"] == comparison["notes"] == []


def test_numbers_that_a_double_cannot_hold_are_those_of_the_report(logged, experiment):
    other, report = logged("as it is", mode="tiny")
    # The total of a report is the sum of its stages.
    report["stages"]["sam"]["flops"] += 2**53 + 1 - report["total"]["flops"]
    report["total"]["flops"] = 2**53 + 1
    with mlflow.start_run(experiment_id=MlflowClient().get_experiment_by_name(experiment).experiment_id):
        run = log_static_report(report)
    assert MlflowClient().get_run(run).data.metrics["flops/total"] == 2**53
    assert total(compare_runs([other, run]))[1] == 2**53 + 1


def test_runs_of_an_experiment_that_answer_to_a_filter(logged, experiment):
    for mode in ("tiny", "base", "base"):
        logged(mode, mode=mode, new_tokens=10)
    everything = compare_runs(experiment=experiment)
    assert len(everything["subjects"]) == 3
    found = compare_runs(experiment=experiment, condition="params.mode = 'base'")
    assert len(found["subjects"]) == 2
    assert len({subject["name"] for subject in found["subjects"]}) == 2
    with pytest.raises(StagemeterError, match="no run of Stagemeter that answers to"):
        compare_runs(experiment=experiment, condition="params.mode = 'huge'")
    with pytest.raises(StagemeterError, match="MLflow does not understand it"):
        compare_runs(experiment=experiment, condition="mode is tiny")
    with pytest.raises(StagemeterError, match="experiment 'nothing': not in"):
        compare_runs(experiment="nothing")


def test_runs_that_cannot_be_compared(logged, experiment):
    run, _ = logged("one", mode="tiny")
    with mlflow.start_run(experiment_id=MlflowClient().get_experiment_by_name(experiment).experiment_id) as foreign:
        pass
    with pytest.raises(StagemeterError, match="was not logged by Stagemeter"):
        compare_runs([run, foreign.info.run_id])
    with pytest.raises(StagemeterError, match="run 'abcdefgh': not in"):
        compare_runs([run, "abcdefgh"])
    MlflowClient().delete_run(foreign.info.run_id)
    with pytest.raises(StagemeterError, match="was deleted"):
        compare_runs([run, foreign.info.run_id])


def test_beginning_that_several_share_is_ambiguous(logged, monkeypatch):
    run, _ = logged("one", mode="tiny")
    other, _ = logged("two", mode="tiny")
    from stagemeter.tracking import runs

    # Ids are random: that two begin alike is arranged.
    monkeypatch.setattr(runs, "_search_all", lambda condition, text: [find for find in both if "LIKE" in condition])
    both = [MlflowClient().get_run(name) for name in (run, other)]
    with pytest.raises(StagemeterError, match="run abcd: 2 runs have an id that begins with it"):
        find_run("abcd")


def test_comparison_is_a_run_that_links_to_its_parts_and_back(logged, experiment, tmp_path, monkeypatch):
    from stagemeter.application.compare import compare_and_log

    first, _ = logged("first", mode="tiny")
    second, _ = logged("second", mode="base")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    compared = compare_and_log([first, second], log=True, quantities=["flops", "bytes"])
    run_id = compared.messages[0].partition("run ")[2].partition(":")[0]
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "second against first"
    assert run.data.tags["stagemeter.kind"] == "comparison"
    assert run.data.tags["stagemeter.compared_runs"] == f"{first},{second}"
    note = run.data.tags["mlflow.note.content"]
    assert f"/runs/{first}" in note
    assert f"/runs/{second}" in note
    row = next(row for row in compared.comparison["quantities"]["flops"]["rows"] if row["stage"] == "total")
    assert run.data.metrics["ratio/flops/total"] == row["ratios"][1]
    assert next(iter(run.data.metrics)) == "ratio/flops/total"
    headline, _, table, *_ = note.splitlines()
    assert headline == f"flops, against first: second **{row['ratios'][1]:.3f} x**."
    assert table.startswith("|stage")
    for part in (first, second):
        assert MlflowClient().get_run(part).data.tags["stagemeter.comparison_runs"] == run_id
    names = {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}
    assert names == {"comparison.json", "comparison.md", "comparison.csv", "comparison.html"}
    stored = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="comparison.json")
    assert json.loads(Path(stored).read_text()) == compared.comparison
    # A comparison is no part of another, nor of what an experiment's filter finds.
    with pytest.raises(StagemeterError, match="is a comparison run"):
        compare_runs([first, run_id])
    assert len(compare_runs(experiment=experiment)["subjects"]) == 2
