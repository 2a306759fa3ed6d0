"""Run the command in this process, in an empty folder that also gets the store of any run."""

import json
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from stagemeter import cli

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Change to an empty folder."""
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty / 'mlflow.db'}")
    monkeypatch.setenv("COLUMNS", "200")
    return empty


@pytest.fixture
def stagemeter(monkeypatch, capsys):
    """Run the command line: ``stagemeter("analyze", "--mode", "tiny")``."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["stagemeter", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Ended(ended.value.code, printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def estimate(stagemeter):
    """Estimate with some options and return the report: ``estimate("--mode", "tiny")``."""

    def run(*arguments: object) -> dict:
        ended = stagemeter("analyze", "--estimate", "--no-track", "--json", *arguments)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return run
