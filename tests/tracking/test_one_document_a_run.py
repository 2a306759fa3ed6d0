"""A run holds one document, and its params, metrics and files belong together."""

import json

import mlflow
import pytest
from mlflow import MlflowClient
from torch import nn

import stagemeter
from stagemeter import StagemeterError, estimate_report, log_static_report, pair_runs
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.errors import StagemeterWarning
from stagemeter.core.workload import Workload
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.document import profile_document
from stagemeter.profiling.profile import Profile
from stagemeter.tracking.compare import subject_of_run
from stagemeter.tracking.document import missing_params
from stagemeter.tracking.labels import PARAMS_OTHERWISE
from stagemeter.tracking.profile import log_profile
from stagemeter.tracking.runs import find_run, load_report


def estimate(mode: str) -> dict:
    return estimate_report(describe_model("deepseek-ocr").architecture, "deepseek-ocr", AnalysisConfig(mode=mode))


@pytest.fixture(scope="module")
def tiny() -> dict:
    return estimate("tiny")


@pytest.fixture(scope="module")
def base() -> dict:
    return estimate("base")


@pytest.fixture
def profile(tiny) -> dict:
    """Return times of the work of `tiny`."""
    metadata = tiny["metadata"]
    return profile_document(
        Profile(times_ms={"sam": (1.0,), "prefill": (2.0,)}, source="test", clock="none"),
        Workload.from_json(json.dumps(metadata["workload"])),
        model=metadata["model"],
        family="deepseek_ocr",
        stages=["sam", "clip", "projector", "prefill", "decode"],
        architecture_hash=metadata["architecture_hash"],
        config=metadata["config"],
    )


@pytest.fixture(autouse=True)
def own(experiment):
    mlflow.set_experiment(experiment)


def held(run_id: str) -> tuple[dict, dict, dict]:
    data = MlflowClient().get_run(run_id).data
    return dict(data.params), dict(data.metrics), dict(data.tags)


def test_second_report_is_refused_and_leaves_the_first_as_it_was(tiny, base):
    with mlflow.start_run() as run:
        log_static_report(tiny)
        before = held(run.info.run_id)
        with pytest.raises(StagemeterError, match=r"holds a static document already.*nested=True"):
            log_static_report(base)
    assert held(run.info.run_id)[:2] == before[:2]
    assert load_report(find_run(run.info.run_id))["total"] == tiny["total"]


def test_same_report_again_adds_nothing(tiny):
    with mlflow.start_run() as run:
        log_static_report(tiny)
        log_static_report(tiny)
    table = mlflow.load_table("stages.json", run_ids=[run.info.run_id])
    assert list(table["stage"]) == list(tiny["stages"])


def test_module_reports_of_two_shapes_do_not_mix():
    module = nn.Linear(8, 8)
    with mlflow.start_run() as run:
        log_static_report(stagemeter.analyze(module, args=(stagemeter.spec(2, 8),)))
        with pytest.raises(StagemeterError, match="holds a module document already"):
            log_static_report(stagemeter.analyze(module, args=(stagemeter.spec(4, 8),)))
    params, metrics, _ = held(run.info.run_id)
    assert (params["inputs"], metrics["flops/total"]) == ("float32[2, 8]", 2 * 2 * 64)


def test_profile_goes_into_no_run_of_counts(tiny, profile):
    with mlflow.start_run() as run:
        log_static_report(tiny)
        with pytest.raises(StagemeterError, match="holds a static document already, and not this profile one"):
            log_profile(run.info.run_id, profile)
    assert held(run.info.run_id)[2]["stagemeter.kind"] == "static"


def test_counts_go_into_no_run_of_a_profile(tiny, base, profile):
    with mlflow.start_run() as run:
        log_profile(run.info.run_id, profile)
        for report in (tiny, base):
            with pytest.raises(StagemeterError, match="holds a profile document already"):
                log_static_report(report)
    assert "flops/total" not in held(run.info.run_id)[1]


def test_profiles_of_two_works_do_not_mix(profile):
    other = {**profile, "metadata": {**profile["metadata"], "workload_hash": "0" * 12}}
    with mlflow.start_run() as run:
        log_profile(run.info.run_id, profile)
        with pytest.raises(StagemeterError, match="holds a profile document already"):
            log_profile(run.info.run_id, other)


def test_nested_runs_hold_a_report_each(tiny, base):
    with mlflow.start_run() as outer:
        log_static_report(tiny)
        with mlflow.start_run(nested=True) as inner:
            assert log_static_report(base) == inner.info.run_id
    for run, report in ((outer, tiny), (inner, base)):
        params, metrics, _ = held(run.info.run_id)
        assert metrics["flops/total"] == report["total"]["flops"]
        assert params["mode"] == report["metadata"]["config"]["mode"]


def test_params_of_the_project_that_say_otherwise_are_named_and_kept_apart(tiny):
    """``mlflow run`` logs its parameters first, and MLflow lets nobody change them."""
    with mlflow.start_run() as run:
        mlflow.log_params({"batch_size": "1.0", "mode": "gundam", "crop_mode": "false", "dtype": "BFLOAT16"})
        with pytest.warns(StagemeterWarning, match=r"mode is 'gundam' there and 'tiny' here\. MLflow keeps"):
            log_static_report(tiny)
    params, _, tags = held(run.info.run_id)
    assert (params["batch_size"], params["mode"], params["crop_mode"]) == ("1.0", "gundam", "false")
    assert tags[PARAMS_OTHERWISE] == "mode: tiny"
    assert subject_of_run(find_run(run.info.run_id)).configuration["mode"] == "tiny"


@pytest.mark.parametrize(
    ("there", "here", "same"),
    [
        ("1.0", "1", True),
        ("True", "true", True),
        ("none", "none", True),
        ("1e3", "1000", True),
        ("1", "2", False),
        ("tiny", "base", False),
    ],
)
def test_spelling_is_no_other_value(there, here, same, recwarn):
    with mlflow.start_run() as run:
        mlflow.log_param("x", there)
    if same:
        assert missing_params(find_run(run.info.run_id), {"x": here}) == ([], {})
    else:
        with pytest.warns(StagemeterWarning, match=f"x is '{there}' there and '{here}' here"):
            params, tags = missing_params(find_run(run.info.run_id), {"x": here})
        assert (params, tags[PARAMS_OTHERWISE]) == ([], f"x: {here}")


def test_a_param_that_was_not_given_contradicts_nothing(recwarn):
    with mlflow.start_run() as run:
        mlflow.log_param("x", "none")
    assert missing_params(find_run(run.info.run_id), {"x": "10"}) == ([], {})
    assert not [warning for warning in recwarn if issubclass(warning.category, StagemeterWarning)]


# A report that is not the run's


def test_foreign_report_in_a_run_is_refused(tiny, base, profile, tmp_path):
    run_id = log_static_report(tiny)
    (tmp_path / "static_compute.json").write_text(json.dumps(base))
    MlflowClient().log_artifact(run_id, str(tmp_path / "static_compute.json"))
    with pytest.raises(StagemeterError, match=r"is not the report that was logged to it"):
        load_report(find_run(run_id))
    with mlflow.start_run() as measured:
        log_profile(measured.info.run_id, profile)
    with pytest.raises(StagemeterError, match=r"is not the report that was logged to it"):
        pair_runs(measured.info.run_id, static_run=run_id, peak_tflops=1.0, peak_gbps=1.0)


def test_report_of_a_run_without_a_hash_is_read(tiny):
    run_id = log_static_report(tiny)
    MlflowClient().delete_tag(run_id, "stagemeter.report_hash")
    assert load_report(find_run(run_id))["total"] == tiny["total"]


def test_files_are_logged_from_memory(tiny, base, tmp_path, monkeypatch):
    """A file that another process wrote into the folder meanwhile is no part of the run."""
    from stagemeter.application import analyze

    def written(contents, folder):
        paths = write(contents, folder)
        (folder / "static_compute.json").write_text(json.dumps(base))
        return paths

    write = analyze.write_report_files
    monkeypatch.setattr(analyze, "write_report_files", written)
    outcome = analyze.analyze_page(AnalysisConfig(mode="tiny"), tmp_path / "out", estimate=True)
    assert load_report(find_run(outcome.run_id))["total"] == tiny["total"]
