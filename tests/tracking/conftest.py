"""Give every test of this folder a real store, and some a real server."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import fluent

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer, cli

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "profiling" / "session" / "small_config.json"
#: 2 x 3 tiles of 64 px beside a global view of 128 px.
TILED = AnalysisConfig(base_size=128, image_size=64, crop_mode=True, image_w=100, image_h=150, new_tokens=40)


@pytest.fixture(scope="session")
def database(new_store, tmp_path_factory) -> str:
    """Return the address of a sqlite store. Each test has an experiment of its own in it."""
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def store(database, tmp_path, monkeypatch) -> str:
    """Make the store the one that MLflow finds, with an experiment of the test's own; return the store's address."""
    # Set and deleted, so that values set during the test are undone too.
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    yield database
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def experiment(store, tmp_path) -> str:
    """Create an experiment of the test's own and return its name; it is not the active one."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    mlflow.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())
    return name


@pytest.fixture
def runs(experiment):
    """Return the runs of the test's experiment, newest first: ``runs()``."""

    def find(name: str = experiment) -> list:
        found = mlflow.MlflowClient().get_experiment_by_name(name)
        return [] if found is None else mlflow.MlflowClient().search_runs([found.experiment_id])

    return find


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``stagemeter`` in this process: ``command("mfu", ...)`` gives exit code, stdout and stderr."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stagemeter", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    yield run
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def report() -> dict:
    """Return the complete report of a small model. Do not change it."""
    session = DeepSeekOCRSession.from_config(json.loads(SMALL.read_text()))
    return DeepseekOCRStaticAnalyzer(session).generate_report(TILED)


@pytest.fixture
def small_model(tmp_path) -> Path:
    """Return a folder for ``--model``: a small config.json, no weights."""
    folder = tmp_path / "small-ocr"
    folder.mkdir()
    (folder / "config.json").write_text(SMALL.read_text())
    return folder


@pytest.fixture
def nobody(free_port) -> str:
    """Return an address on which no server answers."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def server(tmp_path_factory, free_port) -> str:
    """Start an MLflow server and yield its address."""
    folder = tmp_path_factory.mktemp("server")
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    # Background jobs, which nothing here needs, take longer to start than the server.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with (folder / "log").open("w") as log:
        # A process group of its own, so that its workers end with it.
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"{address}/health", process, folder / "log")
        yield address
    finally:
        # Killed at once: it would wait for connections that this process keeps open.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)
