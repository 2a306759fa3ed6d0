"""Results as objects: keys as attributes, the command's tables, data frames of exact numbers, figures."""

import copy
import json
import pickle
from dataclasses import replace
from html.parser import HTMLParser

import numpy
import pytest
from matplotlib.figure import Figure

from stagemeter import AnalysisConfig, StagemeterError, analyze_model, compare_runs, estimate_model, plan, sweep
from stagemeter.core.shown import Record, Shown, exact_frame
from stagemeter.core.terminal import Section
from stagemeter.core.workload import Workload
from stagemeter.export.objects import StaticReport, UtilizationReport
from stagemeter.export.pairing import print_pairing
from stagemeter.export.report import print_report
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.utilization.pairing import pair


@pytest.fixture(scope="module")
def report() -> StaticReport:
    return estimate_model("qwen2.5-vl-7b", image_w=1240, image_h=1754, new_tokens=64, device="H100-SXM")


def cells(html: str) -> list[str]:
    """Texts of a page, as a browser shows them."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append
    parser.feed(html)
    return found


def test_keys_are_attributes_at_every_depth(report):
    assert report.stages.prefill.flops == report["stages"]["prefill"]["flops"]
    assert report.decode_curve[0].flops == report["decode_curve"][0]["flops"]
    assert report.roofline.memory.fits is True
    assert {"stages", "total", "figure"} <= set(dir(report))
    with pytest.raises(AttributeError, match="'StaticReport' object has no attribute 'stage'") as caught:
        _ = report.stage
    assert (caught.value.name, caught.value.obj) == ("stage", report)
    with pytest.raises(AttributeError):
        report.stages = {}


def test_object_is_still_plain_data(report):
    plain = report.to_dict()
    assert type(plain) is type(plain["stages"]) is type(plain["decode_curve"][0]) is dict
    assert json.loads(json.dumps(report)) == report == plain
    for copied in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert copied == report
        assert isinstance(copied.stages.decode, Record)


def test_models_are_named_and_settings_are_keywords():
    by_name = estimate_model("llama-3.1-8b", seq_len=100, batch_size=2)
    assert (by_name.metadata.config.model, by_name.metadata.workload.batch_size) == ("llama-3.1-8b", 2)
    assert by_name.roofline is None
    with pytest.raises(StagemeterError, match=r"^seq_len: is given beside a config\."):
        analyze_model("llama-3.1-8b", AnalysisConfig(), seq_len=100)
    with pytest.raises(StagemeterError, match="no-such-model"):
        estimate_model("no-such-model")


def test_prints_what_the_command_prints(report, capsys):
    print_report(report)
    assert capsys.readouterr().out == f"{report}\n"
    assert repr(report) == "<StaticReport: qwen2.5-vl-7b>"


def test_notebook_shows_the_commands_table(report):
    assert "".join("".join(cells(report._repr_html_())).split()) == "".join(str(report).split())


class Named(Shown):
    def _sections(self):
        return [Section("<b>", [["stage", "n"], ["<script>alert(1)</script>", "a\u202eb"]], ["<img src=x>"])]

    def to_dataframe(self):
        return exact_frame([])

    def figure(self):
        return Figure()


def test_notebook_shows_names_as_text():
    html = Named()._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert "\u202e" not in html
    assert {"<b>", "<script>alert(1)</script>", "<img src=x>"} <= set(cells(html))


def test_rows_of_the_frame_sum_to_the_total(report):
    with_others = estimate_model("deepseek-ocr")
    assert with_others.other_params
    for one in (report, with_others):
        frame = one.to_dataframe()
        assert list(frame["stage"])[: len(one.stages)] == list(one.stages)
        for name in ("params", "macs", "flops", "flops_causal", "flops_executed", "bytes_read", "activations"):
            assert sum(frame[name].tolist()) == one["total"][name], name


@pytest.mark.parametrize(
    "values",
    [
        [1, 2**60 + 1],
        [2**60 + 1, None],
        [2**63, 1],
        [2**63, -1],
        [2**200 + 1, None, 3],
        [2**53 + 1, 0.5],
        [0.5, None],
        ["a", None],
        [None, None],
    ],
)
def test_frame_keeps_numbers(values):
    kept = exact_frame([{"n": value} for value in values])["n"].tolist()
    given = [(value, one) for value, one in zip(values, kept, strict=True) if value is not None]
    assert all(value == one and isinstance(one, type(value)) for value, one in given)


def test_figure_is_shown_and_written(report, tmp_path):
    figure = report.figure()
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [float(n) for n in report.to_dataframe()["flops"]]
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "flops.svg")


def test_utilization(report, capsys):
    times = {"vit": 25.0, "merger": 1.0, "prefill": 60.0, "decode": 6.0}
    workload, peak = Workload.from_dict(report.metadata.workload), device_peak(find_device("H100-SXM"), "bfloat16")
    paired = UtilizationReport(pair(report, times, workload, peak))
    print_pairing(paired)
    assert capsys.readouterr().out == f"{paired}\n"
    frame = paired.to_dataframe().set_index("stage")
    assert frame.loc["prefill", "mfu"] == paired.stages.prefill.mfu
    assert frame.loc["total", "flops"] == report.total.flops
    named = [text.get_text().partition(",")[0] for text in paired.figure().axes[0].texts]
    assert named == list(paired.stages)
    unknown = UtilizationReport(pair(report, times, workload, replace(peak, bytes_per_second=None)))
    with pytest.raises(StagemeterError, match="needs a bandwidth"):
        unknown.figure()


def test_comparison(report):
    other = estimate_model("qwen2.5-vl-7b", image_w=2480, image_h=3508, new_tokens=64)
    compared = compare_runs({"small": report, "large": other})
    frame = compared.to_dataframe()
    assert list(frame.columns) == ["quantity", "stage", "subject", "source", "value", "difference", "ratio"]
    (last,) = frame[(frame["stage"] == "total") & frame["difference"].ne(0)].to_dict("records")
    assert last["difference"] == other.total.flops - report.total.flops
    stacked = compared.figure().axes[0].containers
    assert [len(bars) for bars in stacked] == [2] * len(report.stages)
    assert {"total", "large"} <= set(cells(compared._repr_html_()))
    turned = compare_runs({"small": report, "large": other}, baseline="large")
    assert turned.subjects[turned.baseline].name == "large"
    unnamed = compare_runs([report, other])
    assert [subject.name for subject in unnamed.subjects] == ["report 1", "report 2"]
    with pytest.raises(StagemeterError, match=r"^report 2: is neither a report nor a profile\."):
        compare_runs([report, {"total": 3}])


def test_sweep(tmp_path):
    swept = sweep({"mode": ["tiny", "base"], "new_tokens": [1, 9]}, tmp_path / "sweep.parquet", estimate=True)
    frame = swept.to_dataframe()
    assert frame["flops/total"].dtype == numpy.int64
    assert len(frame) == swept.rows == 4
    assert swept.to_dict()["output"] == str(tmp_path / "sweep.parquet")
    assert str(swept).startswith("4 workloads\n")
    assert swept.figure("cost_by_resolution").axes[0].get_ylabel() == "FLOPs per page"
    with pytest.raises(StagemeterError, match=r"no chart nothing\. Known are cost_by_tokens"):
        swept.figure("nothing")


def test_plan():
    planned = plan("qwen2.5-vl-7b", 1e6, prices={"L40S": 0.9, "H100-SXM": 2.5}, batch_sizes=[8, 32], mfu=0.2)
    assert planned.best[0].device == planned.plan.best[0].device
    assert planned.to_dict()["per_day"] == 1e6
    frame = planned.to_dataframe()
    assert sorted(zip(frame["device"], frame["batch_size"], strict=True)) == [
        (device, size) for device in ("H100-SXM", "L40S") for size in (8, 32)
    ]
    assert "note: every device works on this load all day" in str(planned)
    assert planned.figure().axes[0].get_ylabel().startswith("cost a day")


def test_rates_need_a_device_and_an_mfu_a_rate():
    loaded = estimate_model("llama-3.1-8b", seq_len=100, device="H100-SXM", pages_per_hour=1000, mfu=0.4)
    assert "1,000" in str(loaded)
    assert loaded.load.pages_per_hour == 1000
    with pytest.raises(StagemeterError, match=r"^pages_per_hour: of no device\."):
        estimate_model("llama-3.1-8b", seq_len=100, pages_per_hour=1000)
    with pytest.raises(StagemeterError, match=r"^mfu: of no rate\."):
        estimate_model("llama-3.1-8b", seq_len=100, device="H100-SXM", mfu=0.4)
