"""The command in this process, in an empty folder, with a store that would be made there if anything touched it."""

import json
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from stagemeter import cli

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, empty."""
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty / 'mlflow.db'}")
    monkeypatch.setenv("COLUMNS", "200")
    return empty


@pytest.fixture
def stagemeter(monkeypatch, capsys):
    """Run the command line: ``stagemeter("analyze", "--mode", "tiny")`` tells how it ended."""
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
    """The report of an estimate with some options: ``estimate("--mode", "tiny")``."""

    def run(*arguments: object) -> dict:
        ended = stagemeter("analyze", "--estimate", "--no-track", "--json", *arguments)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return run
