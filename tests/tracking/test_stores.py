"""The same commands against every kind of store: a sqlite file, a remote server, PostgreSQL."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from stagemeter.cli import main
from stagemeter.core.metrics import in_runs, report_values

pytestmark = pytest.mark.slow
PROGRAMS = Path("/usr/lib/postgresql")
TIMES = {"sam": 31.7, "clip": 9.13, "projector": 0.217, "prefill": 27.9, "decode": 7.77}


@pytest.fixture(scope="module")
def postgresql(free_port) -> Iterator[str]:
    """Start a PostgreSQL on a free port of this machine, and yield its address."""
    pytest.importorskip("psycopg2", reason="the test of PostgreSQL needs psycopg2: pip install psycopg2-binary")
    found = sorted(PROGRAMS.glob("*/bin/initdb"))
    if not found:
        pytest.skip("the test of PostgreSQL needs its server: apt-get install postgresql")
    programs = found[-1].parent
    # Not in pytest's folders: pytest makes them private to its own user, and PostgreSQL does not run as root.
    with tempfile.TemporaryDirectory(prefix="stagemeter-postgresql-") as name:
        folder, data, port = Path(name), Path(name) / "data", free_port()
        other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if other:
            shutil.chown(folder, "postgres")

        def run(program: str, *arguments: object) -> None:
            command = [*other, programs / program, *map(str, arguments)]
            # Not captured: the server that `pg_ctl` starts would hold a pipe open.
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        run("initdb", "-D", data, "-U", "postgres", "--auth=trust")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        run("pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "-t", 60, "start")
        try:
            yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "server", "postgresql"])
def place(request, tmp_path, monkeypatch) -> str:
    """Return the address of a store, and make it the one that MLflow finds."""
    if request.param == "sqlite":
        address = f"sqlite:///{tmp_path / 'own.db'}"
    else:
        address = request.getfixturevalue(request.param)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(None)
    return address


@pytest.fixture
def stagemeter(place, tmp_path, monkeypatch, capsys):
    """Run the command in this process, which has the slow imports done, and return stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["stagemeter", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return said.out

    return run


def test_everything_that_is_kept_is_found_again(stagemeter, place, tmp_path):
    experiment = f"kept-{tmp_path.name}"
    report = json.loads(
        stagemeter(
            "analyze", "--estimate", "--mode", "base", "--experiment", experiment, "--run-name", "counted", "--json"
        )
    )
    (tmp_path / "times.json").write_text(json.dumps(TIMES))
    imported = stagemeter("import-profile", "times.json", "--mode", "base", "--experiment", experiment, "--json")
    profile = json.loads(imported)["run_id"]
    paired = json.loads(
        stagemeter("mfu", "--experiment", experiment, "--peak-tflops", 312, "--peak-gbps", 2039, "--json")
    )
    assert [pairing["profile_run_id"] for pairing in paired["pairings"]] == [profile]
    client = MlflowClient()
    place_id = client.get_experiment_by_name(experiment).experiment_id
    (static,) = client.search_runs([place_id], "tags.`stagemeter.kind` = 'static'")
    values = in_runs(report_values(report))
    assert {name: static.data.metrics[name] for name in values} == values
    metrics = client.get_run(profile).data.metrics
    assert metrics["mfu/sam"] == report["stages"]["sam"]["flops"] / (31.7 / 1000) / 312e12
    kept = mlflow.artifacts.download_artifacts(run_id=static.info.run_id, artifact_path="static_compute.json")
    assert json.loads(Path(kept).read_text()) == report
    # By a beginning of an id, and by a filter.
    compared = json.loads(
        stagemeter("compare", static.info.run_id[:12], "stagemeter-report/static_compute.json", "--json")
    )
    assert compared["configuration"] == []
    condition = "params.mode = 'base' and metrics.`flops/total` > 1000"
    filtered = stagemeter(
        "compare", "--experiment", experiment, "--filter", condition, "--metric", "roofline_ms", code=2
    )
    assert filtered == ""
    again = json.loads(stagemeter("upload", "stagemeter-report", "--experiment", experiment, "--json"))["reports"]
    assert [(one["run_id"], one["new"]) for one in again] == [(static.info.run_id, False)]
    swept = json.loads(
        stagemeter(
            "sweep", "--mode", "tiny,base", "--estimate", "--experiment", experiment, "--child-runs", 2, "--json"
        )
    )
    children = client.search_runs([place_id], f"tags.`mlflow.parentRunId` = '{swept['run_id']}'")
    assert len(children) == 2


def test_sixteen_at_once_lose_nothing(place, tmp_path):
    experiment = f"crowd-{tmp_path.name}"
    # Two that make the same experiment, or the tables of a new store, at once are MLflow's race, not ours.
    MlflowClient().create_experiment(experiment)

    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = place
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("crowd.py"), experiment],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 16
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {int(run.data.params["new_tokens"]) for run in runs} == set(range(100, 116))
    for run in runs:
        report = json.loads(
            (tmp_path / f"report-{int(run.data.params['new_tokens']) - 100}" / "static_compute.json").read_text()
        )
        values = in_runs(report_values(report))
        assert {name: run.data.metrics[name] for name in values} == values
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert names >= {"static_compute.json", "static_compute.md", "flops_per_stage.png", "page.png", "stages.json"}
