"""Reports of schema 1.x, which count what is executed, in the shape of this version."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter import StagemeterError
from stagemeter.comparing.compare import compare
from stagemeter.comparing.files import read_report, read_subject
from stagemeter.core.report import EXECUTED_QUANTITIES, report_fault, request_total
from stagemeter.core.report_upgrade import upgraded_report
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import evaluate_workload
from stagemeter.models.families import family_named

#: Written by Stagemeter at schema 1.3.
FILE = Path(__file__).parent.parent / "export" / "documents" / "report_1_3.json"


@pytest.fixture
def earlier() -> dict:
    return json.loads(FILE.read_text())


def test_numbers_of_an_earlier_report_are_those_that_are_executed(earlier):
    report = upgraded_report(earlier)
    assert report_fault(report) is None
    assert report["basis"] == "executed"
    assert report["implementation"] == {
        "name": "transformers",
        "version": earlier["metadata"]["versions"]["transformers"],
    }
    assert "schema 1.3 counts the FLOPs that transformers executes" in report["notes"][-1]
    for quantity in EXECUTED_QUANTITIES:
        assert request_total(report, quantity) == request_total(report, quantity.removesuffix("_executed"))
    assert upgraded_report(report) == report


def test_all_notes_are_key_where_a_report_does_not_say_which(earlier):
    report = upgraded_report(earlier)
    first = {name: value for name, value in report.items() if name != "key_notes"}
    assert upgraded_report(first) == {**first, "key_notes": report["notes"]}


@pytest.mark.parametrize("executed", [False, True])
def test_closed_form_of_an_earlier_report_gives_its_own_counts(earlier, executed):
    report = upgraded_report(earlier)
    workload = Workload.from_dict(report["metadata"]["workload"])
    costs = evaluate_workload(report["closed_form"], family_named(report["metadata"]["family"]), workload, executed)
    for name, stage in report["stages"].items():
        assert costs[name].flops == stage["flops"], name
        assert costs[name].flops_causal == stage["flops_causal"], name


def test_needed_and_executed_flops_are_never_compared(earlier, tmp_path):
    now = {**upgraded_report(earlier), "basis": "model"}
    (tmp_path / "now.json").write_text(json.dumps(now))
    (tmp_path / "before.json").write_text(json.dumps(earlier))
    subjects = [read_subject(tmp_path / name) for name in ("before.json", "now.json")]
    comparison = compare(subjects)
    assert list(comparison["quantities"]) == ["flops_executed"]
    assert {ratio for row in comparison["quantities"]["flops_executed"]["rows"] for ratio in row["ratios"]} == {1}
    assert any(note.startswith("before: schema 1.3 counts") for note in comparison["notes"])
    assert any("what the model needs (now) and what transformers executes (before)" in n for n in comparison["notes"])
    assert list(compare(subjects, ["params"])["quantities"]) == ["params"]
    for metric in ("flops", "macs", "bytes", "activations"):
        with pytest.raises(StagemeterError, match=r"are different counts\. Give flops_executed, or analyze again"):
            compare(subjects, [metric])
    assert list(compare([subjects[0]] * 2)["quantities"]) == ["flops"]


@given(st.data())
def test_damaged_report_is_named_so(data):
    earlier = json.loads(FILE.read_text())
    part, depth = earlier, data.draw(st.integers(1, 3))
    for _ in range(depth):
        name = data.draw(st.sampled_from(sorted(part)))
        if not isinstance(part[name], dict) or not part[name]:
            break
        part, name = part[name], data.draw(st.sampled_from(sorted(part[name])))
    part[name] = data.draw(st.sampled_from([None, "text", [1], {"a": 1}, -1]))
    # It may be sound all the same, but never fails in another way.
    fault = report_fault(upgraded_report(earlier))
    assert fault is None or fault.startswith("at $")


def test_file_that_is_read_is_upgraded():
    assert read_report(FILE)["schema_version"] == "2.0"
