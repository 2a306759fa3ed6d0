"""Views of charts that are saved in experiments, as MLflow's pages read them."""

import base64
import json
import zlib

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from stagemeter.tracking.store import run_messages
from stagemeter.tracking.views import TAG_PREFIX, view_of


@pytest.fixture
def logged(experiment):
    """Make a run of a kind with metrics: ``logged("static", "flops/total")``."""

    def run(kind, *metrics):
        client = MlflowClient()
        run_id = client.create_run(client.get_experiment_by_name(experiment).experiment_id).info.run_id
        values = [Metric(name, 1.0, 0, 0) for name in metrics]
        client.log_batch(run_id, values, tags=[RunTag("stagemeter.kind", kind)])
        return client.get_run(run_id)

    return run


def saved(experiment: str, key: str) -> tuple[dict, dict]:
    """Return a saved view, and the state in it as MLflow 3.17 reads it."""
    view = json.loads(MlflowClient().get_experiment_by_name(experiment).tags[f"{TAG_PREFIX}{key}"])
    packed = view["state"].removeprefix("deflate;")
    return view, json.loads(zlib.decompress(base64.b64decode(packed)))


FLOPS = [f"flops/{part}" for part in ("total", "sam", "prefill", "decode", "decode_total", "forward")]


def test_view_shows_runs_of_one_kind_and_all_stages_first(logged, experiment):
    assert view_of(logged("static", *FLOPS, "memory/weights")) == "stagemeter-static"
    view, state = saved(experiment, "stagemeter-static")
    assert view["name"] == "Stagemeter: Costs by stage"
    assert state["searchFilter"] == "tags.`stagemeter.kind` LIKE 'static%'"
    assert [section["name"] for section in state["compareRunSections"]] == ["by stage", "flops", "memory"]
    (chart,) = state["compareRunCharts"]
    # Neither sums, nor a step beside all steps.
    assert chart["selectedMetricKeys"] == ["flops/sam", "flops/prefill", "flops/decode_total"]
    assert state["selectedColumns"] == ["metrics.`flops/total`"]
    # Earlier versions of MLflow read the state beside the name, and take a tag of 5,000 characters.
    assert {name: view[name] for name in state} == state
    assert len(json.dumps(view)) < 5000


def test_stages_of_another_model_are_added_and_nothing_else_changes(logged, experiment):
    view_of(logged("static", *FLOPS))
    view_of(logged("static", "flops/total", "flops/merger", "roofline_ms/merger"))
    _, state = saved(experiment, "stagemeter-static")
    (chart,) = state["compareRunCharts"]
    assert chart["selectedMetricKeys"] == ["flops/sam", "flops/prefill", "flops/decode_total", "flops/merger"]
    assert [section["name"] for section in state["compareRunSections"]] == ["by stage", "flops", "roofline_ms"]
    before = MlflowClient().get_experiment_by_name(experiment).tags
    view_of(logged("static", *FLOPS))
    assert MlflowClient().get_experiment_by_name(experiment).tags == before


def test_view_of_sweeps_has_their_rows_and_no_stages(logged, experiment):
    view_of(logged("sweep", "flops/total/min", "flops/total/max"))
    _, state = saved(experiment, "stagemeter-sweep")
    assert state["searchFilter"] == "tags.`stagemeter.kind` LIKE 'sweep%'"
    assert state["compareRunCharts"] == state["compareRunSections"] == []


def test_damaged_view_is_written_anew(logged, experiment):
    experiment_id = MlflowClient().get_experiment_by_name(experiment).experiment_id
    for damaged in ("no json", "[]", '{"stagemeter": 3}'):
        MlflowClient().set_experiment_tag(experiment_id, f"{TAG_PREFIX}stagemeter-static", damaged)
        view_of(logged("static", *FLOPS))
        assert saved(experiment, "stagemeter-static")[1]["compareRunCharts"]


def test_link_goes_without_a_view_where_none_can_be_saved(logged, monkeypatch, caplog):
    run = logged("static", *FLOPS)

    def refused(*args):
        raise MlflowException("Permission denied")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_experiment_tag", refused)
        messages = run_messages(run.info)
    assert messages[1].endswith("compareRunsMode=CHART")
    assert "charts come in MLflow's own order" in caplog.text
    assert run_messages(run.info)[1].endswith("compareRunsMode=CHART&viewStateShareKey=stagemeter-static")
    assert run_messages(logged("nothing of ours").info)[1].endswith("compareRunsMode=CHART")
