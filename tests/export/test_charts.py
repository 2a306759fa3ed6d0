"""Pictures of reports, and reports of more than 64 bits."""

import io
import json
import math
import random
import re
from itertools import combinations

import pytest
from matplotlib.text import Text
from PIL import Image

from stagemeter import AnalysisConfig, describe_model, estimate_model
from stagemeter.core.metrics import report_values
from stagemeter.core.report import report_fault
from stagemeter.export.charts import Chart, Series, _drawn, bar_figure, chart_picture, chart_svg, picture
from stagemeter.export.report import flops_chart, report_files, write_report_files
from stagemeter.export.roofline import roofline_chart
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


def roofline_of(stages: dict[str, tuple[float, float]]) -> Chart:
    """A chart of stages by their FLOPs, and bytes, at 1,000 TFLOP/s and 4,000 GB/s."""
    rows = {
        name: {"flops_causal": intensity * 10**9, "bytes": 10**9, "mfu_causal": share * min(1.0, intensity / 250)}
        for name, (intensity, share) in stages.items()
    }
    peak = {"name": "a device", "dtype": "bfloat16", "tflops": 1000.0, "gbps": 4000.0}
    return roofline_chart({"model": "a model", "peak": peak, "stages": rows})


@pytest.mark.parametrize("seed", range(5))
def test_names_of_a_roofline_cover_neither_points_nor_one_another(seed):
    draw = random.Random(seed)
    names = draw.sample(["sam", "clip", "vit", "projector", "prefill", "decode"], draw.randint(3, 6))
    stages = {name: (10 ** draw.uniform(-0.3, 3.7), draw.uniform(0.01, 1)) for name in names}
    figure, labels = _drawn(roofline_of(stages))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert [text.get_text().partition(",")[0] for text in axes.texts] == names
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    points = [line.get_xydata()[0] for line in axes.lines if line.get_marker() != "None"]
    assert len(points) == len(names)
    assert not any(box.contains(*axes.transData.transform(point)) for box in boxes for point in points)
    assert len(labels) == len(stages)


def test_a_roofline_has_decades_and_the_distance_to_its_ceiling():
    figure, labels = _drawn(roofline_of({"prefill": (1000, 0.5), "decode": (2, 0.25)}))
    (axes,) = figure.axes
    for axis in (axes.xaxis, axes.yaxis):
        least, most = axis.get_view_interval()
        ticks = [tick for tick in axis.get_majorticklocs() if least <= tick <= most]
        assert len(ticks) >= 3
        assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in ticks)
    distances = [line.get_ydata() for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [list(ends) for ends in distances] == [[500, 1000], [pytest.approx(2), pytest.approx(8)]]
    assert [said for (said,) in labels.values()] == [
        "prefill: 1000 FLOPs per byte, 500 TFLOP/s, 50 % of the ceiling",
        "decode: 2 FLOPs per byte, 2 TFLOP/s, 25 % of the ceiling",
    ]


def test_marks_of_a_page_say_their_labels():
    lines = Chart("t", "x", "y", "lines", [Series("a", [1, 2, 3], [1, 2, 3], ["one", "two", "three"])], log=True)
    bars = Chart("t", "x", "y", "lying bars", [Series("b", ["p", "q"], [1, -2], ["1 T", "-2 T"])], stacked=True)
    assert re.findall("<title>(.*?)</title>", chart_svg(lines, "lines")) == ["one", "two", "three"]
    assert re.findall("<title>(.*?)</title>", chart_svg(bars, "bars")) == ["p, b: 1 T", "q, b: -2 T"]
    assert chart_svg(lines, "lines") == chart_svg(lines, "lines")
    ids = [set(re.findall('id="(.*?)"', chart_svg(chart, name))) for chart, name in ((lines, "a"), (bars, "b"))]
    clips = [{name for name in found if re.fullmatch("p[0-9a-f]{10}", name)} for found in ids]
    assert clips[0]
    assert not clips[0] & clips[1]


def test_many_points_and_large_maps_are_small_files():
    places = list(range(1, 20_001))
    points = Chart("t", "x", "y", "points", [Series("a", places, places, list(map(str, places)))], log=True)
    heat = Chart("t", "x", "y", "heat", heat=[places[:1000]] * 300, x_values=places[:1000], y_values=places[:300])
    assert all(len(chart_svg(chart, "large")) < 300_000 for chart in (points, heat))
