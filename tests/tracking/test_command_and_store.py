"""The command with a store: what it leaves there after success, failure, an interrupt, or without a store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stagemeter import AnalysisConfig, StagemeterError, TrackingError, cli, log_static_report
from stagemeter.application.analyze import analyze_page
from stagemeter.tracking.run import tracked_run
from stagemeter.tracking.store import store_errors

PAGE = "examples/page.png"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``stagemeter analyze`` in this process: ``command("--mode", "tiny")`` gives exit code, stdout and stderr."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stagemeter", "analyze", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    yield run
    signal.signal(signal.SIGTERM, handler)


# It works


@pytest.mark.usefixtures("report")  # Imports torch: without it here, the command counts in another process.
def test_command_logs_what_it_counted(command, experiment, runs, small_model, tmp_path, request):
    page = request.config.rootpath / PAGE
    code, _, err = command(
        "--model", small_model, "--image", page, "--experiment", experiment, "--output-dir", tmp_path / "out"
    )
    assert code == 0
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "gundam 913+512 tokens, small-ocr"
    assert run.data.tags["stagemeter.agreement"] == "equal"
    assert run.data.params["image"] == str(page)
    artifacts = {artifact.path for artifact in MlflowClient().list_artifacts(run.info.run_id)}
    files = {"static_compute.json", "static_compute.md", "static_compute_fvcore.md"}
    assert artifacts == files | {"flops_per_stage.png", "stages.json", "page.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert f"run {run.info.run_id}: http" in err
    assert f"/#/experiments/{run.info.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART" in err


def test_name_and_experiment_can_be_given(command, runs, tmp_path):
    code, _, _ = command(
        "--estimate", "--experiment", "a new one", "--run-name", "mine", "--output-dir", tmp_path / "out"
    )
    assert code == 0
    assert [run.info.run_name for run in runs("a new one")] == ["mine"]


def test_run_goes_into_the_models_own_experiment_unless_another_is_chosen(
    command, experiment, runs, tmp_path, monkeypatch
):
    options = ("--estimate", "--model", "deepseek-ocr-small", "--output-dir", tmp_path / "out")
    before = len(runs("stagemeter/deepseek-ocr-small"))
    code, _, err = command(*options)
    assert code == 0, err
    assert len(runs("stagemeter/deepseek-ocr-small")) == before + 1
    # The active experiment of this process is still nobody's.
    assert command(*options)[0] == 0
    assert len(runs("stagemeter/deepseek-ocr-small")) == before + 2
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    assert command(*options)[0] == 0
    assert len(runs()) == 1
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    mlflow.set_experiment(experiment)
    assert command(*options)[0] == 0
    assert len(runs()) == 2


def test_deleted_experiment_is_named(command, experiment, tmp_path):
    MlflowClient().delete_experiment(MlflowClient().get_experiment_by_name(experiment).experiment_id)
    code, _, err = command("--estimate", "--experiment", experiment, "--output-dir", tmp_path / "out")
    assert code == 2
    assert f"experiment {experiment!r}: was deleted. Name another one, or restore it by" in err


def test_untracked_command_leaves_nothing_in_the_store(command, experiment, tmp_path):
    before = MlflowClient().search_runs([e.experiment_id for e in MlflowClient().search_experiments()])
    assert command("--estimate", "--no-track", "--output-dir", tmp_path / "out")[0] == 0
    after = MlflowClient().search_runs([e.experiment_id for e in MlflowClient().search_experiments()])
    assert len(before) == len(after)


def test_report_on_stdout_is_alone_there(command, experiment, tmp_path):
    code, out, err = command("--estimate", "--json", "--experiment", experiment, "--output-dir", tmp_path / "out")
    assert code == 0
    assert json.loads(out)["total"]["params"] == 3_336_106_240
    assert "run " in err


@pytest.mark.slow
@pytest.mark.usefixtures("report")
def test_server_gets_run_and_artifacts(server, command, small_model, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    code, _, err = command("--model", small_model, "--experiment", "served", "--output-dir", tmp_path / "out")
    assert code == 0
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("served").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["prompt_tokens"] == "913"
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {"static_compute.json", "page.png"}
    back = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="static_compute.json")
    assert json.loads(Path(back).read_text()) == json.loads((tmp_path / "out" / "static_compute.json").read_text())
    assert f"{server}/#/experiments/{run.info.experiment_id}/runs?" in err
    assert "to see it" not in err


# Nobody there


def test_without_a_server_the_files_are_written_and_the_exit_code_says_so(command, nobody, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    start = time.monotonic()
    code, out, err = command("--estimate", "--output-dir", tmp_path / "out")
    assert time.monotonic() - start < 10
    assert code == cli.NO_STORE == 3
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for part in (nobody, "MLFLOW_TRACKING_URI", "--no-track", str(tmp_path / "out" / "static_compute.json")):
        assert part in line
    assert "Traceback" not in err
    assert json.loads((tmp_path / "out" / "static_compute.json").read_text())["total"]["params"] == 3_336_106_240
    assert "total" in out


def test_driver_that_is_not_installed_is_named(monkeypatch, tmp_path, command):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+nothing://127.0.0.1:9/none")
    code, _, err = command("--estimate", "--output-dir", tmp_path / "out")
    assert code == cli.NO_STORE
    assert "Traceback" not in err
    assert str(tmp_path / "out" / "static_compute.json") in err.splitlines()[-1]


def test_api_says_at_once_that_nobody_is_there(report, nobody, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    start = time.monotonic()
    with pytest.raises(TrackingError, match=nobody):
        log_static_report(report)
    assert time.monotonic() - start < 10


def test_password_is_not_part_of_the_message(report, nobody, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody.replace("http://", "http://me:secret@"))
    with pytest.raises(TrackingError, match="no MLflow server answers") as caught:
        log_static_report(report)
    assert "secret" not in str(caught.value)


def test_database_that_is_none_is_a_tracking_error(report, monkeypatch, tmp_path):
    (tmp_path / "not.db").write_text("this is no database, however long one looks at it " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'not.db'}")
    with pytest.raises(TrackingError, match=r"^MLFLOW_TRACKING_URI: .+ refused: .+[^.]\. Mend the store"):
        log_static_report(report)


def test_reason_of_a_store_ends_in_one_full_stop():
    with pytest.raises(TrackingError, match=r"refused: the disk is full\. Mend the store, or"), store_errors():
        raise MlflowException("the disk is full.\nIn detail")


@pytest.mark.parametrize("uri", ["nonsense://somewhere", "http://"])
def test_address_that_is_none_keeps_the_files(command, monkeypatch, tmp_path, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, _, err = command("--estimate", "--output-dir", tmp_path / "out")
    assert code == cli.NO_STORE
    assert [line for line in err.splitlines() if line.startswith("error: ")]
    assert (tmp_path / "out" / "static_compute.json").is_file()


def test_store_that_goes_away_during_the_work_keeps_the_files(experiment, runs, monkeypatch, tmp_path):
    def gone(*args, **kwargs):
        raise MlflowException("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", gone)
        outcome = analyze_page(AnalysisConfig(mode="tiny"), tmp_path / "out", estimate=True, experiment=experiment)
    assert "connection lost" in str(outcome.tracking_error)
    assert all(path.is_file() for path in outcome.files)
    assert [run.info.status for run in runs()] == ["FAILED"]


# It fails or is interrupted


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (StagemeterError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_run_ends_as_the_work_ends(experiment, runs, error, status):
    with pytest.raises(error), tracked_run("mine", "default", experiment, "own"):
        raise error("on purpose")
    assert [(run.info.run_name, run.info.status) for run in runs()] == [("mine", status)]
    assert mlflow.active_run() is None


def test_experiment_of_a_project_run_is_not_changed(experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(StagemeterError, match="--experiment-name"), tracked_run(None, "default", experiment, "own"):
        pytest.fail("a project's run cannot move")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_interrupted_command_leaves_its_run_killed(experiment, runs, tmp_path, kind):
    arguments = ["analyze", "--mode", "gundam", "--every-layer", "--experiment", experiment]
    # MLflow is imported before: the interrupt is to come while something is counted, however busy the machine is.
    code = "import stagemeter.tracking.log, stagemeter.tracking.run; from stagemeter.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--output-dir", str(tmp_path / "out")],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test session in the background of a shell ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    parent, deadline = psutil.Process(process.pid), time.monotonic() + 120
    # Two processes: the one that counts, and the one that Python watches shared memory with.
    while len(parent.children()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    children = parent.children(recursive=True)
    assert runs() == [], "the store is asked once there is something to tell"
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED == 130
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert [run.info.status for run in runs()] == ["KILLED"]
    assert not (tmp_path / "out").exists()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "what counts in the background goes, too"
    assert gone


def test_environment_of_these_tests_is_their_own(store):
    assert mlflow.get_tracking_uri() == store == os.environ["MLFLOW_TRACKING_URI"]
