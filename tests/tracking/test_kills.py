"""SIGKILL, which a process cannot handle, leaves no process, no partial file and nothing of another run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DRIVER = Path(__file__).with_name("killed_at.py")
#: Seconds in which what a killed process started has to be gone.
PATIENCE = 20


def kills(folder: Path, every: int) -> list[dict]:
    """Kill an analysis at every n-th call; return each kill with its faults."""
    done = subprocess.run([sys.executable, DRIVER, folder, str(every)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_kill_at_some_calls_leaves_nothing_wrong(tmp_path):
    found = kills(tmp_path, every=20)
    assert len(found) > 2
    assert [kill for kill in found if kill["faults"]] == []


@pytest.mark.slow
def test_kill_at_every_write_and_log_call_leaves_nothing_wrong(tmp_path):
    found = kills(tmp_path, every=1)
    # Three files are written and seven logged: before and after each there is a kill.
    for call in ("fsync", "replace", "write_bytes", "start_run", "log_batch", "log_artifacts", "end_run"):
        for when in ("before", "after"):
            assert f"{when} {call}" in {kill["at"] for kill in found}
    assert [kill for kill in found if kill["faults"]] == []


def killed(command: list, folder: Path, children: int) -> list[psutil.Process]:
    """Start a command, kill it once it has started so many processes, and return those that are left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stagemeter", *map(str, command)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parent, deadline = psutil.Process(process.pid), time.monotonic() + 120
    while len(parent.children(recursive=True)) < children and time.monotonic() < deadline:
        assert process.poll() is None, "it is killed while it works"
        time.sleep(0.05)
    # Into the work of the others, and not only their imports.
    time.sleep(2)
    started = parent.children(recursive=True)
    assert len(started) >= children
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=PATIENCE)
    return alive


@pytest.mark.slow
def test_killed_analysis_leaves_no_process_that_goes_on_counting(tmp_path):
    command = ["analyze", "--mode", "gundam", "--every-layer", "--output-dir", tmp_path / "out"]
    assert killed(command, tmp_path, children=2) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_sweep_leaves_no_worker(tmp_path):
    command = ["sweep", "--estimate", "--no-track", "--mode", "tiny,base", "--new-tokens", "2..300000"]
    command += ["--batch-size", "1..8", "--output", tmp_path / "table.parquet", "--jobs", 2]
    assert killed(command, tmp_path, children=2) == []
    assert not (tmp_path / "table.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet.parts"]
