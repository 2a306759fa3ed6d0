"""Upload logs each report that was made offline once."""

import json
import random

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stagemeter import AnalysisConfig, StagemeterError, TrackingError, estimate_report, write_static_compute_json
from stagemeter.application.analyze import analyze_page
from stagemeter.application.upload import upload
from stagemeter.models.lookup import describe_model

ARCHITECTURE = describe_model("deepseek-ocr").architecture


@pytest.fixture
def reports(tmp_path):
    """Write three folders with a report each, two of them of the same workload."""
    for name, settings in (
        ("a", {"mode": "tiny"}),
        ("b", {"mode": "base"}),
        ("below/c", {"mode": "tiny", "dtype": "float32"}),
    ):
        report = estimate_report(ARCHITECTURE, "deepseek-ocr", AnalysisConfig(**settings))
        write_static_compute_json(report, tmp_path / "reports" / name / "static_compute.json")
    return tmp_path / "reports"


def test_each_report_is_logged_once_in_any_order(reports, experiment, runs):
    folders = [reports / name for name in ("a", "b", "below")]
    first = upload(folders, experiment)
    assert [one.new for one in first] == [True, True, True]
    assert {run.info.status for run in runs()} == {"FINISHED"}
    random.Random(1).shuffle(folders)
    for again in (upload(folders, experiment), upload([reports], experiment)):
        assert [one.new for one in again] == [False, False, False]
        assert {one.path: one.run_id for one in again} == {one.path: one.run_id for one in first}
    assert len(runs()) == 3
    run = MlflowClient().get_run(first[0].run_id)
    report = json.loads(first[0].path.read_text())
    assert run.data.metrics["flops/total"] == report["total"]["flops"]
    assert run.info.run_name == "tiny 83+512 tokens, deepseek-ocr"


def test_report_that_a_run_logged_itself_is_not_brought_in_again(experiment, runs, tmp_path):
    analyze_page(AnalysisConfig(mode="tiny"), tmp_path / "out", estimate=True, experiment=experiment)
    (done,) = upload([tmp_path / "out"], experiment)
    assert (done.new, done.run_id) == (False, runs()[0].info.run_id)


def test_run_that_was_cut_short_does_not_count(reports, experiment, runs, monkeypatch):
    def gone(*args, **kwargs):
        raise MlflowException("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_artifacts", gone)
        with pytest.raises(TrackingError, match="connection lost"):
            upload([reports / "a"], experiment)
    assert [run.info.status for run in runs()] == ["FAILED"]
    assert [one.new for one in upload([reports / "a"], experiment)] == [True]


def test_nothing_is_logged_if_one_report_cannot_be_used(reports, experiment, runs):
    (reports / "b" / "static_compute.json").write_text("{}")
    with pytest.raises(StagemeterError, match="is neither a report nor a profile"):
        upload([reports], experiment)
    (reports / "empty").mkdir()
    with pytest.raises(StagemeterError, match=r"holds no static_compute.json"):
        upload([reports / "empty"], experiment)
    with pytest.raises(StagemeterError, match="no such JSON file"):
        upload([reports / "nothing"], experiment)
    with pytest.raises(StagemeterError, match="paths: missing"):
        upload([], experiment)
    assert runs() == []
