"""Pictures of reports, and reports of more than 64 bits."""

import io
import json

import pytest
from PIL import Image

from stagemeter import AnalysisConfig, describe_model, estimate_model
from stagemeter.core.metrics import report_values
from stagemeter.core.report import report_fault
from stagemeter.export.charts import Chart, Series, bar_figure, chart_picture, picture
from stagemeter.export.report import flops_chart, report_files, write_report_files
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.utilization.memory import roofline_section


@pytest.mark.parametrize("kind", ["tiled", "estimate", "stage left out", "large, one token"])
def test_chart_is_a_picture_with_something_on_it(reports, kind):
    picture = Image.open(io.BytesIO(flops_chart(reports[kind])))
    assert picture.format == "PNG"
    assert picture.width > picture.height > 300
    assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 10


@pytest.mark.parametrize("largest", [2**63 - 1, 2**63, 2**64, 10**30])
def test_pictures_take_any_integer(largest):
    assert picture(bar_figure({"prefill": largest, "decode": 1}, largest + 1, "FLOPs", "a request")).startswith(
        b"\x89PNG"
    )
    for kind in ("lines", "points", "bars"):
        chart = Chart("title", "x", "y", kind, [Series("some", [1, 2], [1, largest])])
        assert chart_picture(chart).startswith(b"\x89PNG")


def test_a_chart_of_nothing_is_a_picture():
    assert picture(bar_figure({}, 0, "FLOPs", "a request")).startswith(b"\x89PNG")


def test_a_request_of_more_than_64_bits_is_written_as_any_other(tmp_path):
    """Count 65 EFLOPs, 2**65.8, which no 64-bit integer holds."""
    config = AnalysisConfig(model="llama-3.1-70b", text_tokens=131_072, batch_size=1024)
    model = describe_model(config.model)
    report = estimate_model(model, config)
    one = estimate_model(model, config.model_copy(update={"batch_size": 1}))
    assert report["total"]["flops"] == 1024 * one["total"]["flops"] > 2**63
    peak = device_peak(find_device("H100-SXM"), "bfloat16")
    report["roofline"] = roofline_section(report, model.family, model.architecture, peak)
    assert report_fault(report) is None
    written, *_ = write_report_files(report_files(report), tmp_path)
    assert json.loads(written.read_text())["total"]["flops"] == report["total"]["flops"]
    assert flops_chart(report).startswith(b"\x89PNG")
    assert report_values(report)["flops/total"] == report["total"]["flops"]


@pytest.mark.parametrize("quantity", ["macs", "flops", "flops_causal", "activations", "bytes_read", "bytes_written"])
def test_a_total_that_is_not_the_sum_of_the_stages_is_a_fault(quantity):
    config = AnalysisConfig(mode="tiny")
    report = estimate_model(describe_model(config.model), config)
    assert report_fault(report) is None
    report["stages"]["decode"][f"{quantity}_total"] += 2
    assert report_fault(report).startswith(f"at $.total.{quantity}: ")
