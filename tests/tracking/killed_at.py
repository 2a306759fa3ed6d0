"""Run as a program: kill an analysis at its first call of interest, a new one at its second, and so on.

``python killed_at.py FOLDER`` makes everything in that folder. It prints a JSON list with the call of each kill, and
the faults after it and after the run that follows. ``python killed_at.py FOLDER 9`` kills at every ninth call alone.
The calls are wrapped here; the product knows nothing of this.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile

WORK = pathlib.Path(sys.argv[1])
EVERY = int(sys.argv[2]) if len(sys.argv) > 2 else 1
for name in ("out", "tmp"):
    (WORK / name).mkdir()
os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{WORK / 'mlflow.db'}", "TMPDIR": str(WORK / "tmp")}
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.chdir(WORK)
tempfile.tempdir = None

# After the environment, which they read. Each process below is a fork of this one and imports nothing.
import matplotlib.font_manager  # noqa: E402, F401
import mlflow  # noqa: E402
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402
from mlflow import MlflowClient  # noqa: E402

from stagemeter import estimate_report  # noqa: E402
from stagemeter.analysis.config import AnalysisConfig  # noqa: E402
from stagemeter.application.analyze import analyze_page  # noqa: E402
from stagemeter.core.errors import StagemeterError  # noqa: E402
from stagemeter.export.report import report_files  # noqa: E402
from stagemeter.models.lookup import describe_model  # noqa: E402
from stagemeter.tracking.runs import load_report, search_runs  # noqa: E402

#: Calls to kill before and after: those that write files, and those to the store.
CALLS = [
    (tempfile, "mkstemp"),
    (tempfile, "mkdtemp"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (shutil, "rmtree"),
    (pathlib.Path, "write_bytes"),
    (pathlib.Path, "chmod"),
    (mlflow, "start_run"),
    (mlflow, "end_run"),
    *((MlflowClient, name) for name in ("get_run", "update_run", "log_batch", "log_artifacts")),
]
KILLED, NEXT = "tiny", "base"


def contents(mode: str) -> dict[str, str]:
    config = AnalysisConfig(mode=mode)
    return report_files(estimate_report(describe_model(config.model).architecture, config.model, config))


EXPECTED = {mode: contents(mode) for mode in (KILLED, NEXT)}


def analyze(mode: str, kill_at: int | None) -> None:
    """Analyze in this process, and kill it at an event; the last event is written to a file before it."""
    events = 0

    def wrapped(function, name):
        def event(when: str) -> None:
            nonlocal events
            events += 1
            if events == kill_at:
                (WORK / "killed").open("w").write(f"{when} {name}")
                os.kill(os.getpid(), signal.SIGKILL)

        @functools.wraps(function)
        def call(*args, **kwargs):
            event("before")
            result = function(*args, **kwargs)
            event("after")
            return result

        return call

    if kill_at is not None:
        for owner, name in CALLS:
            setattr(owner, name, wrapped(getattr(owner, name), name))
    outcome = analyze_page(AnalysisConfig(mode=mode), WORK / "out", estimate=True)
    assert outcome.tracking_error is None, outcome.tracking_error


def in_a_copy(work) -> int:
    """Run a function in a fork of this process, and return its status as of `os.waitpid`."""
    child = os.fork()
    if not child:
        try:
            with pathlib.Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def faults_of_files() -> list[str]:
    """Return the faults of the folder: files of two reports, or half of one."""
    found = {path.name: path.read_text() for path in (WORK / "out").iterdir() if not path.name.startswith(".")}
    whole = [mode for mode, files in EXPECTED.items() if all(files.get(name) == text for name, text in found.items())]
    return [] if whole else [f"files of no one report: {sorted(found)}"]


def faults_of_runs() -> None:
    """Check every run in the store against its own report."""
    for run in search_runs(["0"], ""):
        total = run.data.metrics.get("flops/total")
        try:
            report = load_report(run)
        except StagemeterError:
            assert run.info.status != "FINISHED", "a finished run has a report"
            continue
        assert total == report["total"]["flops"], "a report is of its run's metrics"
        assert report["metadata"]["config"]["mode"] == run.data.params["mode"]


def leftovers() -> list[str]:
    hidden = [path.name for path in (WORK / "out").iterdir() if path.name.startswith(".")]
    return [f"left: {name}" for name in (*hidden, *(path.name for path in (WORK / "tmp").iterdir()))]


def main() -> None:
    assert in_a_copy(lambda: analyze(NEXT, None)) == 0
    done = []
    while True:
        status = in_a_copy(lambda: analyze(KILLED, 1 + EVERY * len(done)))
        if status == 0:
            break
        assert os.WIFSIGNALED(status), "killed by us, and by nothing else"
        faults = faults_of_files()
        if in_a_copy(lambda: analyze(NEXT, None)):
            faults.append("the next run failed")
        faults += leftovers() + faults_of_files()
        if in_a_copy(faults_of_runs):
            faults.append("a run holds what is not its own")
        done.append({"at": (WORK / "killed").read_text(), "faults": faults})
    print(json.dumps(done))


main()
