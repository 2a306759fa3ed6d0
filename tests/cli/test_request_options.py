"""Logs of requests on the command line."""

import json

import pytest


@pytest.fixture
def log(folder):
    path = folder / "log.csv"
    path.write_text("prompt_tokens,cached_tokens,output_tokens\n900,0,9\n900,896,9\n5,9,1\n", encoding="utf-8")
    return path


def test_document_is_alone_on_stdout_and_in_a_file(stagemeter, folder, log):
    ended = stagemeter("analyze", "--model", "llama-3.1-8b", "--requests", log, "--skip-bad", "--json", "--no-track")
    found = json.loads(ended.out)
    assert (ended.code, found["requests"], found["skipped"]["lines"]) == (0, 2, 1)
    assert found == json.loads((folder / "stagemeter-report" / "requests.json").read_text(encoding="utf-8"))
    assert not (folder / "mlflow.db").exists()


def test_table_ends_with_the_lines_that_were_skipped(stagemeter, log):
    ended = stagemeter("analyze", "--model", "llama-3.1-8b", "--requests", log, "--skip-bad", "--no-track")
    assert [line.split()[0] for line in ended.out.splitlines()[2:5]] == ["prefill", "decode", "total"]
    assert ended.out.splitlines()[-1] == "skipped line 4: cached_tokens 9 are more than prompt_tokens 5"
    assert ended.err == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--requests", "log.csv"], "log.csv: line 4: cached_tokens 9 are more than prompt_tokens 5. Repair it, or"),
        (["--requests", "none.csv"], "none.csv: no such log of requests"),
        (["--skip-bad"], "--skip-bad: there is no log whose lines it skips"),
        (["--requests", "log.csv", "--strict"], "--strict: a log of requests takes no such option"),
        (["--requests", "log.csv", "--device", "H100"], "--device: a log of requests takes no such option"),
        (["--requests", "log.csv", "--new-tokens", "5"], "--new-tokens 5: each request says its own"),
    ],
)
def test_contradictions_are_refused(stagemeter, log, options, reason):
    ended = stagemeter("analyze", "--model", "llama-3.1-8b", "--no-track", *options)
    assert ended.code == 2
    assert reason in ended.err
