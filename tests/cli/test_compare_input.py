"""`stagemeter compare` on files: exit codes and errors."""

import csv
import json

import pytest


@pytest.fixture
def reports(estimate, folder):
    """Return the files of two reports, of requests of different length."""
    for name, tokens in (("short", 100), ("long", 1000)):
        (folder / f"{name}.json").write_text(json.dumps(estimate("--mode", "base", "--new-tokens", tokens)))
    return "short.json", "long.json"


def test_files_are_compared_and_the_gate_has_a_code_of_its_own(stagemeter, reports):
    ended = stagemeter("compare", *reports, "--max-increase", "prefill/flops=0%", "--max-increase", "params/total=0%")
    assert ended.code == 0, ended.err
    assert "configuration: new_tokens: 100, 1000" in ended.out
    ended = stagemeter("compare", *reports, "--max-increase", "prefill/flops=0%", "--max-increase", "total/flops=1%")
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("over the limit: flops/total: ")
    assert "of long is" in line
    # The other way round it became cheaper.
    assert stagemeter("compare", *reversed(reports), "--max-increase", "total/flops=0%").code == 0
    assert stagemeter("compare", *reversed(reports), "--max-decrease", "total/flops=1%").code == 1


def test_json_is_one_document_with_the_breaches(stagemeter, reports):
    ended = stagemeter(
        "compare",
        *reports,
        "--baseline",
        "long.json",
        "--metric",
        "bytes",
        "--json",
        "--max-decrease",
        "total/bytes=1%",
    )
    assert ended.code == 1
    document = json.loads(ended.out)
    assert document["baseline"] == 1
    assert list(document["quantities"]) == ["bytes"]
    assert len(document["breaches"]) == 1


def test_baseline_may_be_one_more(stagemeter, reports, estimate, folder):
    (folder / "tiny.json").write_text(json.dumps(estimate("--mode", "tiny")))
    document = json.loads(stagemeter("compare", *reports, "--baseline", "tiny.json", "--json").out)
    assert [subject["name"] for subject in document["subjects"]] == ["tiny", "short", "long"]
    assert document["baseline"] == 0


def test_files_of_a_comparison(stagemeter, reports, folder):
    ended = stagemeter("compare", *reports, "--output-dir", folder / "out")
    assert ended.code == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison.json",
        "comparison.md",
    ]
    with (folder / "out" / "comparison.csv").open() as file:
        assert {line["subject"] for line in csv.DictReader(file)} == {"short", "long"}
    assert not (folder / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "RUNS, --experiment: nothing is given. Give one of them"),
        (["short.json"], "1 cannot be compared"),
        (["short.json", "short.json"], "short.json: is given more than once"),
        (["short.json", "nothing.json"], "nothing.json: no such file"),
        (["short.json", "broken.json"], "broken.json: cannot be read as JSON"),
        (["short.json", "list.json"], "list.json: is neither a report nor a profile"),
        (["short.json", "other.json"], "other.json: is neither a report nor a profile"),
        (["short.json", "newer.json"], "newer.json: has schema 9.0, and this version of Stagemeter reads 2."),
        (["short.json", "damaged.json"], "damaged.json: is a damaged report (at $"),
        (["short.json", "profile.json"], "is a damaged profile"),
        (["short.json", "long.json", "--metric", "flop"], "flop: unknown. Known are flops"),
        (["short.json", "long.json", "--metric", "time_ms"], "has no time_ms. Give one of activations, bytes, flops"),
        (["short.json", "long.json", "--max-increase", "total=1%"], "Write stage/quantity=percent"),
        (["short.json", "long.json", "--max-increase", "vision/flops=1%"], "flops/vision: short has no such value"),
        (["short.json", "long.json", "--baseline", "nothing.json"], "nothing.json: no such file"),
        (["short.json", "long.json", "--filter", "params.mode = 'tiny'"], '--filter: "params.mode'),
        (["short.json", "long.json", "--experiment", "x"], "RUNS, --experiment: short.json, long.json and x exclude"),
        (["short.json", "long.json", "--output-dir", "short.json"], "is not a folder"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_what_is_refused_leaves_nothing_behind(stagemeter, reports, folder, arguments, part):
    report = json.loads((folder / "short.json").read_text())
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[]")
    (folder / "other.json").write_text('{"stages": 1}')
    (folder / "newer.json").write_text(json.dumps({**report, "schema_version": "9.0"}))
    (folder / "damaged.json").write_text(json.dumps({**report, "total": {}}))
    (folder / "profile.json").write_text('{"schema_version": "1.0", "times_ms": {}, "time_ms": {}, "metadata": {}}')
    before = sorted(folder.iterdir())
    ended = stagemeter("compare", *arguments)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert sorted(folder.iterdir()) == before
