"""The table of devices: dense rates with sources, and its printed forms."""

import json
import re
from datetime import date
from pathlib import Path

import pytest

from stagemeter.core.cost import ITEM_SIZES
from stagemeter.export.catalog import COLUMNS, device_rows, print_devices
from stagemeter.hardware.devices import known_devices

ROOT = Path(__file__).parents[2]
every_device = pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)

#: Dense bfloat16 TFLOP/s as the design has them, from datasheets; vendors' headline numbers are twice as high.
DENSE_BFLOAT16 = {
    "A100-SXM-40GB": 312,
    "A100-SXM-80GB": 312,
    "A100-PCIe-40GB": 312,
    "A100-PCIe-80GB": 312,
    "H100-SXM": 989,
    "H100-PCIe": 756,
    "H100-NVL": 835,
    "H200-SXM": 989,
    "H20": 148,
    "B200": 2250,
    "GB200": 2500,
    "L40S": 362,
    # Rounded to 1,300 in other tables.
    "MI300X": 1307.4,
}


@every_device
def test_numbers_are_positive_and_have_a_source(device):
    assert device.peak_tflops
    assert all(rate > 0 for rate in [*device.peak_tflops.values(), *device.sparse_tflops.values()])
    assert device.bandwidth_gbps > 0
    assert device.memory_gb > 0
    assert device.address is None or device.address.startswith("https://")
    assert date.fromisoformat(device.entered) <= date.today()
    assert re.search(r"datasheet|whitepaper|white paper|documentation|specification", device.source)


@every_device
def test_dense_is_half_of_sparse_and_never_the_same(device):
    assert set(device.sparse_tflops) <= set(device.peak_tflops)
    for dtype, sparse in device.sparse_tflops.items():
        dense = device.peak_tflops[dtype]
        assert dense != sparse
        # Datasheets round both; the L40S's rates are the furthest apart, 362 beside 733.
        assert dense == pytest.approx(sparse / 2, rel=0.015)


@every_device
def test_data_types_are_known_and_in_order(device):
    rates = device.peak_tflops
    assert set(rates) <= {*ITEM_SIZES, "tf32", "float8"}
    assert rates.get("float32", 0) <= rates.get("tf32", float("inf"))
    if "bfloat16" in rates and "float16" in rates:
        assert rates["bfloat16"] == rates["float16"]
    if "tf32" in rates:
        # Of tensor cores; the B200's datasheet rounds 1,125 to 1,100.
        assert rates["tf32"] == pytest.approx(rates["bfloat16"] / 2, rel=0.025)


@pytest.mark.parametrize(("name", "tflops"), DENSE_BFLOAT16.items())
def test_dense_bfloat16(name, tflops):
    (device,) = (device for device in known_devices() if device.name == name)
    assert device.peak_tflops["bfloat16"] == tflops


def test_only_the_h20_has_no_document_of_its_vendor():
    assert [device.name for device in known_devices() if device.address is None] == ["H20"]


def test_devices_without_bfloat16_have_no_rate_for_it():
    without = {device.name for device in known_devices() if "bfloat16" not in device.peak_tflops}
    assert without == {"V100-SXM2-16GB", "V100-SXM2-32GB", "V100-PCIe-16GB", "V100-PCIe-32GB", "T4"}


def test_geforce_accumulates_in_float32():
    for device in known_devices():
        if device.name.startswith("RTX"):
            # Tensor cores of GeForce are four times as fast as the others only when they accumulate in float16.
            assert device.peak_tflops["float16"] == pytest.approx(2 * device.peak_tflops["float32"], rel=0.01)
            assert "float32 accumulation" in device.source


def test_sources_say_what_was_halved():
    for device in known_devices():
        if device.sparse_tflops and "halved" not in device.source:
            assert "printed" in device.source, device.name


# What prints it


def test_table_has_a_line_per_device(capsys):
    print_devices(known_devices())
    out = capsys.readouterr().out
    *table, last = out.splitlines()[1:]
    assert "-v" in last
    lines = [line.split() for line in table]
    assert lines[0] == [column for column in COLUMNS if column != "source"]
    assert [line[0] for line in lines[1:]] == [device.name for device in known_devices()]
    assert next(line for line in lines if line[0] == "T4")[1:6] == ["–", "65", "8.1", "320", "16"]
    assert next(line for line in lines if line[0] == "MI300X")[1] == "1,307.4"


def test_json_is_alone_on_stdout_and_complete(capsys):
    print_devices(known_devices(), as_json=True)
    known = json.loads(capsys.readouterr().out)
    assert [device["name"] for device in known] == [device.name for device in known_devices()]
    (h100,) = (device for device in known if device["name"] == "H100-SXM")
    assert h100["peak_tflops"]["bfloat16"] == 989
    assert h100["sparse_tflops"]["bfloat16"] == 1979
    assert h100["reported_names"] == ["NVIDIA H100 80GB HBM3"]


def test_table_in_the_docs_is_the_one_in_the_code():
    text = (ROOT / "docs" / "hardware.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    header = next(index for index, row in enumerate(rows) if row == list(COLUMNS))
    assert rows[header + 2 : header + 2 + len(known_devices())] == device_rows(known_devices())
