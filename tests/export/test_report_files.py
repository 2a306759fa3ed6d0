"""The three files of a report, compared with golden files."""

import json
import re

import pytest

from stagemeter import (
    CostCounter,
    DeepSeekOCRSession,
    StagemeterError,
    write_static_compute_fvcore_table,
    write_static_compute_json,
    write_static_compute_markdown,
)
from stagemeter.counting.fvcore_view import CountedFlops
from stagemeter.export.report import print_report, report_files, report_markdown, write_report_files

STAGES = ["sam", "clip", "projector", "prefill", "decode"]


def no_float(text: str) -> None:
    raise AssertionError(f"{text} is not an exact integer")


# JSON


def test_json_is_the_golden_one(report, golden, tmp_path):
    path = write_static_compute_json(report, tmp_path / "static_compute.json")
    golden("static_compute.json", path.read_text(encoding="utf-8"))


def test_json_holds_exact_integers_and_nothing_else(reports, tmp_path):
    for report in reports.values():
        path = write_static_compute_json(report, tmp_path / "report.json")
        assert json.loads(path.read_text(encoding="utf-8"), parse_float=no_float, parse_constant=no_float) == report


def test_json_keeps_integers_beyond_a_float(report, tmp_path):
    report["total"]["flops"] = 2**64 + 1
    text = write_static_compute_json(report, tmp_path / "report.json").read_text()
    assert json.loads(text)["total"]["flops"] == 18_446_744_073_709_551_617


# Markdown


def test_markdown_is_the_golden_one(report, golden, tmp_path):
    path = write_static_compute_markdown(report, tmp_path / "static_compute.md")
    golden("static_compute.md", path.read_text(encoding="utf-8"))


def test_markdown_has_the_parts_that_it_should(report, tmp_path):
    text = write_static_compute_markdown(report, tmp_path / "report.md").read_text(encoding="utf-8")
    for heading in ("Configuration", "Totals of the request", "Stages in detail", "Notes"):
        assert re.search(rf"^## {heading}$", text, flags=re.MULTILINE)
    for stage in STAGES:
        details = text.split(f"### {stage}\n")[1].split("\n## ")[0].split("\n### ")[0]
        counts = re.findall(r"FLOPs executed, (isolated|extracted|analytic) *\| *([\d,]+)", details)
        expected = f"{report['stages'][stage]['flops']:,}"
        assert counts == [("isolated", expected), ("extracted", expected), ("analytic", expected)]
        operators = re.findall(r"^\|`([\w.:]+)`", details, flags=re.MULTILINE)
        by_flops = sorted(report["stages"][stage]["operators"].values(), reverse=True)[:3]
        assert [report["stages"][stage]["operators"][name] for name in operators] == by_flops
    for note in report["notes"]:
        assert note in text


def test_markdown_tables_have_one_number_of_cells(reports, tmp_path):
    for report in reports.values():
        text = write_static_compute_markdown(report, tmp_path / "report.md").read_text(encoding="utf-8")
        tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
        assert tables
        for table in tables:
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_markdown_says_what_was_not_counted(reports, tmp_path):
    text = write_static_compute_markdown(reports["stage left out"], tmp_path / "report.md").read_text(encoding="utf-8")
    details = text.split("### projector\n")[1].split("### prefill")[0]
    assert re.search(r"FLOPs executed, isolated *\| *not counted", details)
    assert "broken on purpose" in details
    assert "some could not count" in text


def test_markdown_says_that_tiers_disagree(report, tmp_path):
    report["agreement"] |= {"status": "different", "equal": False, "differences": ["sam macs: isolated 1, analytic 2"]}
    report["stages"]["sam"]["flops_analytic"] += 2
    text = report_markdown(report)
    assert "disagree**: sam macs: isolated 1, analytic 2" in text
    assert re.search(r"^\|sam\|.*\|no\|$", text, flags=re.MULTILINE)


def test_shares_add_up_to_the_whole(report):
    shares = re.findall(r"\|([\d.]+) %\|", report_markdown(report).partition("## Totals")[0])
    # Five stages, `other`, and the total.
    assert len(shares) == 7
    assert sum(map(float, shares[:-1])) == pytest.approx(100, abs=0.3)
    assert shares[-1] == "100.0"


# fvcore's table


def test_fvcore_table_is_the_golden_one(report, golden, tmp_path):
    path = write_static_compute_fvcore_table(report, tmp_path / "static_compute_fvcore.md")
    golden("static_compute_fvcore.md", path.read_text(encoding="utf-8"))


def test_fvcore_table_says_that_it_shows_macs(report, tmp_path):
    text = write_static_compute_fvcore_table(report, tmp_path / "table.md").read_text(encoding="utf-8")
    assert "MACs" in text.split("|")[0]
    assert "model.vision_tower.sam_encoder" in text


def test_fvcore_table_takes_fvcores_own_analysis(small_config, tmp_path):
    session = DeepSeekOCRSession.from_config(small_config)
    projector = session.model.get_submodule("model.multi_modal_projector")
    with CostCounter(projector) as counter:
        projector(projector.weight.new_empty(7, projector.in_features))
    counted = CountedFlops(projector, counter.counts())
    assert counted.total() == 7 * projector.in_features * projector.out_features
    text = write_static_compute_fvcore_table(counted, tmp_path / "table.md").read_text(encoding="utf-8")
    assert "MACs" in text
    assert "#flops" in text
    assert re.search(r"\| *14\.336K *\|", text), text


def test_fvcore_table_needs_a_pass_of_the_whole_model(reports, tmp_path):
    with pytest.raises(ValueError, match="the whole model was not run"):
        write_static_compute_fvcore_table(reports["estimate"], tmp_path / "table.md")
    assert list(tmp_path.iterdir()) == []


# All together


def test_folder_gets_the_three_files(report, tmp_path):
    files = write_report_files(report_files(report), tmp_path / "new" / "folder")
    assert [path.name for path in files] == ["static_compute.json", "static_compute.md", "static_compute_fvcore.md"]
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())


def test_estimate_has_no_table_of_modules(reports, tmp_path):
    files = write_report_files(report_files(reports["estimate"]), tmp_path)
    assert [path.name for path in files] == ["static_compute.json", "static_compute.md"]


def test_table_of_an_earlier_analysis_does_not_stay(report, reports, tmp_path):
    write_report_files(report_files(report), tmp_path)
    write_report_files(report_files(reports["estimate"]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"static_compute.json", "static_compute.md"}


def test_folder_in_place_of_the_file_is_refused(report, tmp_path):
    (tmp_path / "static_compute.json").mkdir()
    with pytest.raises(StagemeterError, match=r"static_compute\.json: cannot be written"):
        write_report_files(report_files(report), tmp_path)


def test_console_shows_every_stage_with_share_and_agreement(report, capsys):
    print_report(report)
    printed = capsys.readouterr().out
    for stage in STAGES:
        assert re.search(rf"^{stage}.* % .*3 of 3 *$", printed, flags=re.MULTILINE), stage
    assert re.search(r"^total .*equal *$", printed, flags=re.MULTILINE)
    assert "page 100x150" in printed
