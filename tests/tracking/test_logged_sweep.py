"""A sweep in a real store: one run, and the child runs that were asked for."""

import io
import json

import mlflow
import pandas
import pytest
from mlflow import MlflowClient

from stagemeter import StagemeterError, TrackingError
from stagemeter.application.sweep import sweep_and_log
from stagemeter.sweeping.build import SweepSettings
from stagemeter.sweeping.summary import summarize

SETTINGS = SweepSettings(
    mode="tiny,base,gundam",
    batch_size="1,4",
    new_tokens="100..400:100",
    page_size="600x600,1240x1754",
    device="A100-80GB,H100-SXM",
)
SIZE = 3 * 2 * 4 * 2 * 2


@pytest.fixture
def swept(experiment, tmp_path):
    def run(settings: SweepSettings = SETTINGS, **options):
        return sweep_and_log(settings, tmp_path / "sweep.parquet", estimate=True, experiment=experiment, **options)

    return run


def test_sweep_is_one_run_with_grid_summary_table_and_charts(swept, runs, tmp_path):
    done = swept()
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (done.run_id, "FINISHED")
    assert run.data.tags["stagemeter.kind"] == "sweep"
    assert run.data.params["mode"] == "tiny,base,gundam"
    assert run.data.params["new_tokens"] == "100..400:100"
    frame = pandas.read_parquet(done.output)
    assert len(frame) == SIZE == run.data.metrics["sweep/workloads"]
    for what in ("min", "max"):
        assert run.data.metrics[f"flops/total/{what}"] == pytest.approx(
            getattr(frame["flops/total"], what)(), rel=1e-12
        )
    names = {artifact.path for artifact in MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {
        "sweep.parquet",
        "sweep.csv",
        "charts.html",
        *(
            f"{name}.png"
            for name in ("cost_by_tokens", "bytes_by_batch", "heat_map", "cost_by_resolution", "pages_per_hour")
        ),
    }
    text = mlflow.artifacts.load_text(f"runs:/{done.run_id}/sweep.csv")
    assert pandas.read_csv(io.StringIO(text))["flops/total"].tolist() == frame["flops/total"].tolist()
    page = mlflow.artifacts.load_text(f"runs:/{done.run_id}/charts.html")
    assert page.count("<svg ") == 5
    assert len(page) < 300_000
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(f"**{SIZE} workloads.**")
    assert "H100-SXM" in note
    assert run.info.run_name.startswith("mode tiny,base,gundam, ")


def test_what_is_not_varied_is_not_drawn(swept, runs):
    swept(SweepSettings(mode="tiny,base"))
    names = {artifact.path for artifact in MlflowClient().list_artifacts(runs()[0].info.run_id)}
    assert names == {"sweep.parquet", "sweep.csv", "charts.html", "cost_by_resolution.png"}


@pytest.mark.parametrize(("chosen", "count"), [("5", 5), ("pareto", 3), ("all", SIZE)])
def test_children_only_when_asked_for(swept, runs, chosen, count):
    done = swept(child_runs=chosen)
    parent, children = done.run_id, [run for run in runs() if run.info.run_id != done.run_id]
    assert len(children) == count
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent}
    frame = pandas.read_parquet(done.output)
    keys = ["mode", "image_width", "batch_size", "new_tokens", "device"]
    rows = {tuple(map(str, key)): row for key, row in frame.set_index(keys).iterrows()}
    for child in children[:5]:
        row = rows[tuple(child.data.params[key] for key in keys)]
        assert child.data.metrics["flops/total"] == row["flops/total"]
        assert child.data.metrics["roofline_ms/total"] == row["roofline_ms/total"]
        assert child.info.status == "FINISHED"


def test_bad_input_opens_no_run_and_a_failure_marks_it(swept, runs, tmp_path, monkeypatch):
    with pytest.raises(StagemeterError, match="huge"):
        swept(SweepSettings(mode="huge"))
    with pytest.raises(StagemeterError, match="--child-runs some"):
        swept(child_runs="some")
    (tmp_path / "sweep.parquet.parts").mkdir()
    with pytest.raises(StagemeterError, match="--resume"):
        swept()
    assert runs() == []
    (tmp_path / "sweep.parquet.parts").rmdir()

    def broken(*args):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("stagemeter.application.sweep.rows_parquet", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        swept()
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_table_is_there_when_the_store_refuses(swept, runs, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    def gone(*args, **kwargs):
        raise MlflowException("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", gone)
        with pytest.raises(TrackingError, match=r"connection lost.*The table is written: .*sweep.parquet"):
            swept()
    assert len(pandas.read_parquet(tmp_path / "sweep.parquet")) == SIZE
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_summary_of_numbers_that_overflow_when_summed(swept, runs):
    done = swept(SweepSettings(mode="gundam", batch_size="30000..30200", new_tokens="2000..2100"))
    frame = pandas.read_parquet(done.output)
    (run,) = runs()
    assert frame["flops/total"].astype(object).sum() > 2**63
    mean = summarize(done.output).ranges.set_index("column").loc["flops/total", "mean"]
    assert mean == pytest.approx(frame["flops/total"].astype(float).mean(), rel=1e-9)
    # Of batches of different sizes, a mean says nothing.
    assert "flops/total/mean" not in run.data.metrics
    assert json.loads(json.dumps(run.data.metrics))["flops/total/min"] > 0


def test_mean_is_of_requests_of_one_size_of_batch(swept, runs):
    frame = pandas.read_parquet(swept(SweepSettings(mode="tiny,base", batch_size="2", new_tokens="10,20")).output)
    (run,) = runs()
    assert run.data.metrics["flops/total/mean"] == pytest.approx(frame["flops/total"].astype(float).mean(), rel=1e-9)


def test_numbers_of_more_than_64_bits_are_logged_and_drawn(swept, runs):
    """A batch that fits into one device alone leaves decimal columns with rows that have no throughput."""
    wide = SweepSettings(mode="tiny,base", batch_size="1,65536", new_tokens="10,1000000", device="A100-80GB")
    done = swept(wide, child_runs="all")
    frame = pandas.read_parquet(done.output)
    largest = max(int(value) for value in frame["flops/total"])
    assert largest > 2**63
    (parent,) = (run for run in runs() if run.info.run_id == done.run_id)
    assert parent.data.metrics["flops/total/max"] == float(largest)
    children = [run for run in runs() if run.info.run_id != done.run_id]
    assert len(children) == len(frame) == 8
    assert max(child.data.metrics["flops/total"] for child in children) == float(largest)
    rated = ["at_roofline/pages_per_hour" in child.data.metrics for child in children]
    assert 0 < sum(rated) < 8
