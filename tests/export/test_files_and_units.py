"""Files that are written whole or not at all, numbers for people, and the chart."""

import errno
import io
import json
import os
import stat
import tempfile

import pytest
from PIL import Image

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.core.metrics import report_values
from stagemeter.core.report import report_fault
from stagemeter.core.units import describe_views, percentage, with_unit
from stagemeter.core.writing import require_writable, write_whole
from stagemeter.export.charts import Chart, Series, bar_chart, chart_picture, flops_chart
from stagemeter.export.report import report_files, write_report_files
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.utilization.memory import roofline_section

# Files


def test_missing_folders_are_made(tmp_path):
    path = write_whole(tmp_path / "a" / "b" / "text.md", "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()


def test_existing_file_is_replaced(tmp_path):
    path = tmp_path / "text.md"
    path.write_text("a much longer text than the new one")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    path = write_whole(tmp_path / "text.md", "text")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "report.json"
    path.write_text("old")

    def refused(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(type(path), step, refused)
        with pytest.raises(StagemeterError, match=r"report\.json cannot be written: No space left on device"):
            write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    path = tmp_path / "report.json"
    with monkeypatch.context() as broken:
        broken.setattr(type(path), "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "new")
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StagemeterError, match="cannot be written"):
        write_whole(tmp_path / "file" / "report.json", "text")
    with pytest.raises(StagemeterError, match=r"file is not a folder; give another --output-dir"):
        require_writable(tmp_path / "file" / "deeper")


def test_folder_that_refuses_files_is_refused(tmp_path, monkeypatch):
    """As a read-only or full file system does, whoever asks."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(StagemeterError, match="cannot be written to: Read-only file system"):
        require_writable(tmp_path / "new" / "folder")


def test_folder_where_a_file_is_to_be_written_is_refused(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(StagemeterError, match=r"report\.json is a folder"):
        require_writable(tmp_path, ["other.md", "report.json"])


def test_folder_that_is_not_there_yet_is_not_made_by_asking(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


# Units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (999, "999"),
        (1000, "1.00 k"),
        (1001, "1.00 k"),
        (9_994, "9.99 k"),
        (9_995, "10.0 k"),
        (99_949, "99.9 k"),
        (99_950, "100 k"),
        (994_999, "995 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (999_999, "1.00 M"),
        (1_000_000, "1.00 M"),
        (976_909_172_736, "977 G"),
        (4_889_973_260_288, "4.89 T"),
        (999_499_999_999_999, "999 T"),
        (10**15, "1.00 P"),
        (123 * 10**15, "123 P"),
        (None, "–"),
    ],
)
def test_three_significant_digits(value, text):
    assert with_unit(value) == text


def test_unit_follows_the_prefix():
    assert with_unit(1500, "B") == "1.50 kB"
    assert with_unit(12, "FLOPs") == "12 FLOPs"
    assert with_unit(2 * 10**12, "FLOPs") == "2.00 TFLOPs"


def test_rounding_is_never_off_by_more_than_half_a_digit():
    prefixes = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    value = 7
    while value < 10**17:
        number, _, prefix = with_unit(value).partition(" ")
        assert float(number) * prefixes[prefix] == pytest.approx(value, rel=0.005)
        assert len(number.replace(".", "")) <= 3
        value = value * 13 // 10 + 1


def test_share_of_nothing_is_not_a_number():
    assert percentage(1, 3) == "33.3 %"
    assert percentage(0, 0) == "–"


def test_views_in_words():
    views = {"global_views": 1, "base_size": 1024, "local_views": 6, "image_size": 640, "tile_grid": [2, 3]}
    assert describe_views(views) == "1 x 1024 + 6 x 640 (2x3)"
    assert describe_views(views | {"local_views": 0, "tile_grid": [1, 1]}) == "1 x 1024"


# Chart


@pytest.mark.parametrize("kind", ["tiled", "estimate", "stage left out", "large, one token"])
def test_chart_is_a_picture_with_something_on_it(reports, kind):
    picture = Image.open(io.BytesIO(flops_chart(reports[kind])))
    assert picture.format == "PNG"
    assert picture.width > picture.height > 300
    assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 10


@pytest.mark.parametrize("largest", [2**63 - 1, 2**63, 2**64, 10**30])
def test_pictures_take_any_integer(largest):
    assert bar_chart({"prefill": largest, "decode": 1}, largest + 1, "FLOPs", "a request").startswith(b"\x89PNG")
    for kind in ("lines", "points", "bars"):
        chart = Chart("title", "x", "y", kind, [Series("some", [1, 2], [1, largest])])
        assert chart_picture(chart).startswith(b"\x89PNG")


def test_a_request_of_more_than_64_bits_is_written_as_any_other(tmp_path):
    """65 EFLOPs, 2**65.8: what no 64-bit integer holds."""
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
