"""The end of a command: exit code and one line, whatever happens to its output and its terminal."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from stagemeter.cli import BAD_INPUT, BUG, INTERRUPTED, NO_STORE, cli
from stagemeter.cli.endings import ending, name_options
from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.models.lookup import describe_model

FULL = Path("/dev/full")


def run(*arguments, env=None, **how):
    environment = {**os.environ, "COLUMNS": "200", **(env or {})}
    command = [sys.executable, "-m", "stagemeter", *arguments]
    return subprocess.run(command, env=environment, text=True, check=False, stderr=subprocess.PIPE, **how)


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (StagemeterError("dtype: no such"), BAD_INPUT, "dtype: no such"),
        (click.BadParameter("no such option"), BAD_INPUT, "no such option"),
        (TrackingError("no server"), NO_STORE, "no server"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (MemoryError(), BAD_INPUT, "memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), BAD_INPUT, "x.json: No space left on device"),
        (OSError(errno.EMFILE, "Too many open files"), BAD_INPUT, "Too many open files"),
        (KeyError("sam"), BUG, "KeyError: 'sam'"),
        (AssertionError(), BUG, "AssertionError"),
        (ZeroDivisionError("division by zero"), BUG, "report it"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), BUG, "FileNotFoundError"),
        (RecursionError("too deep"), BUG, "-v"),
    ],
)
def test_each_error_has_its_code_and_a_line(error, code, part):
    found, line = ending(error)
    assert found == code
    assert part in line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("sample_image_path, image_w: exclude each other", "--image, --page-size: exclude each other"),
        ("image_w 5: is too small", "--page-size 5: is too small"),
        ("model.json: is no report", "model.json: is no report"),
        ("mode/scan.png: cannot be read", "mode/scan.png: cannot be read"),
    ],
)
def test_messages_name_options_and_leave_names_of_files(message, shown):
    error = StagemeterError(message)
    name_options(error, cli.get_command(click.Context(cli), "analyze"))
    assert str(error) == shown


def test_codes_are_those_that_the_docs_name():
    assert (BAD_INPUT, NO_STORE, BUG, INTERRUPTED) == (2, 3, 70, 130)


@pytest.fixture
def broken(monkeypatch):
    """Plant a bug in a command, with a message that holds control characters."""

    def fail(*_args, **_kwargs):
        raise IndexError("list index\nout of \x1b[31mrange")

    monkeypatch.setattr("stagemeter.application.models.shipped_model_rows", fail)


def test_bug_is_one_line(stagemeter, broken):
    ended = stagemeter("models")
    assert (ended.code, ended.out) == (BUG, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: a bug in Stagemeter, IndexError: list index out of \\x1b[31mrange.")


def test_verbose_shows_the_traceback_of_a_bug(broken, monkeypatch, stagemeter):
    monkeypatch.setattr("logging.Logger.isEnabledFor", lambda self, level: True)
    ended = stagemeter("models", "-v")
    assert ended.code == BUG
    assert "Traceback" in ended.err
    assert "in shipped_model_rows" not in ended.err
    assert ended.err.splitlines()[-1].startswith("error: a bug")


def test_bug_in_a_comparison_is_not_a_limit_that_is_exceeded(stagemeter, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.get_command(click.Context(cli), "compare"), "callback", lambda **_: 1 / 0)
    assert stagemeter("compare", "a.json", "b.json").code == BUG


@pytest.mark.parametrize("arguments", [("devices",), ("devices", "--json"), ("--help",), ("models",)])
def test_reader_who_leaves_is_no_error(arguments):
    """The reader closes the pipe before anything is written, as ``| head -0`` does."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        ended = run(*arguments, stdout=pipe)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_reader_who_leaves_does_not_change_what_a_gate_says(report_files):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        ended = run("compare", *report_files, "--max-increase", "total/flops=1%", stdout=pipe)
    assert ended.returncode == 1
    assert ended.stderr.startswith("over the limit: ")


@pytest.fixture
def report_files(stagemeter, folder):
    for mode in ("tiny", "base"):
        assert stagemeter("analyze", "--estimate", "--no-track", "--mode", mode, "--output-dir", mode).code == 0
    return [f"{mode}/static_compute.json" for mode in ("tiny", "base")]


@pytest.mark.parametrize("arguments", [("devices",), ("devices", "--json"), ("--version",)])
def test_full_disk_behind_the_output_is_one_line(arguments):
    with FULL.open("w") as full:
        ended = run(*arguments, stdout=full)
    assert ended.returncode == BAD_INPUT
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: stdout: cannot be written: No space left on device.")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(redirection):
    command = f"{sys.executable} -m stagemeter devices {redirection}"
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["encoding", "C", "POSIX", "locale"],
)
def test_ascii_terminal_gets_ascii(environment, report_files):
    command = ("analyze", "--estimate", "--no-track", "--mode", "tiny", "--device", "H100-SXM")
    ended = run(*command, env=environment, stdout=subprocess.PIPE)
    assert ended.returncode == 0
    assert ended.stdout.isascii()
    assert "us" in ended.stdout
    assert "\\x" not in ended.stdout


def test_json_in_ascii_is_the_same_json(folder):
    """A report names a model folder whatever its name is."""
    name = "modèle-µ"
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(dict(describe_model("qwen3-0.6b").config)))
    command = ("analyze", "--estimate", "--no-track", "--json", "--model", name)
    found = [
        run(*command, env={"PYTHONIOENCODING": encoding}, stdout=subprocess.PIPE).stdout
        for encoding in ("ascii", "utf-8")
    ]
    assert found[0].isascii()
    assert name in found[1]
    assert json.loads(found[0]) == json.loads(found[1])
