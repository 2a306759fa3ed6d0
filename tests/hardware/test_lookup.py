"""Lookup of a device by any of its names: never the wrong one, and no default."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.devices import known_devices
from stagemeter.hardware.lookup import device_peak, find_device, given_peak

NAMES = [(name, device.name) for device in known_devices() for name in device.names]


def refusal(find, *arguments) -> str:
    """The message of a refusal; always one line."""
    with pytest.raises(StagemeterError) as caught:
        find(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("name", "device"), NAMES)
def test_every_name_leads_to_its_own_device(name, device):
    assert find_device(name).name == device


def test_names_are_unique():
    own = [device.name for device in known_devices()]
    assert len(own) == len(set(own))
    owners: dict[str, set[str]] = {}
    for name, device in NAMES:
        owners.setdefault(name.lower(), set()).add(device)
    assert all(len(devices) == 1 for devices in owners.values())


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200-SXM"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-32GB", "V100-SXM2-32GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("AMD Instinct MI300X", "MI300X"),
        ("AMD Instinct MI250X", "MI250X-GCD"),
        ("a100_sxm_80gb", "A100-SXM-80GB"),
        ("A100 SXM 80GB", "A100-SXM-80GB"),
        ("a100sxm80gb", "A100-SXM-80GB"),
        ("  h100-sxm  ", "H100-SXM"),
        ("rtx 4090", "RTX-4090"),
        ("GeForce RTX 4090", "RTX-4090"),
        ("tpu v5e", "TPU-v5e"),
        ("gaudi3", "Gaudi-3"),
    ],
)
def test_names_as_drivers_and_people_write_them(name, device):
    assert find_device(name).name == device


@given(st.sampled_from(NAMES), st.data())
def test_case_and_separators_make_no_difference(pair, data):
    name, device = pair
    letters = [
        data.draw(st.sampled_from([" ", "-", "_", "- "])) if letter in " -_" else data.draw(either_case(letter))
        for letter in name
    ]
    assert find_device("".join(letters)).name == device


def either_case(letter: str) -> st.SearchStrategy[str]:
    return st.sampled_from([letter.lower(), letter.upper()])


@pytest.mark.parametrize(("name", "others"), [("H100", "H100-PCIe or H100-NVL"), ("h200", "H200-NVL")])
def test_a_name_that_others_share_says_what_it_is_treated_as(name, others, caplog):
    device = find_device(name)
    assert device.name.endswith("-SXM")
    assert caplog.messages == [f"device: {name} is treated as {device.name}, not {others}"]


@pytest.mark.parametrize("name", ["NVIDIA H200", "H200-SXM", "NVIDIA H100 80GB HBM3", "A100-SXM-80GB"])
def test_names_of_drivers_and_reports_are_taken_without_a_word(name, caplog):
    find_device(name)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "among"),
    [
        ("A100", ["A100-SXM-40GB", "A100-SXM-80GB", "A100-PCIe-40GB", "A100-PCIe-80GB"]),
        ("NVIDIA A100", ["A100-SXM-40GB", "A100-PCIe-80GB"]),
        ("v100", ["V100-SXM2-16GB", "V100-SXM2-32GB", "V100-PCIe-16GB", "V100-PCIe-32GB"]),
        ("V100 32GB", ["V100-SXM2-32GB", "V100-PCIe-32GB"]),
        ("GeForce RTX", ["RTX-3090", "RTX-4090", "RTX-5090"]),
    ],
)
def test_what_could_be_several_is_none(name, among):
    message = refusal(find_device, name)
    assert all(device in message for device in [repr(name), *among])
    assert "could be any of" in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("A100-SXM-81GB", "A100-SXM-80GB"),
        ("H800", "H200-SXM"),
        ("RTX 4090 Laptop GPU", "RTX-4090"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100-SXM-40GB"),
        ("MI300", "MI300X"),
        ("H100 HBM3", "H100-SXM"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is_near(name, near):
    message = refusal(find_device, name)
    assert message.startswith(f"device: {name!r} is unknown. Did you mean ")
    assert near in message


@pytest.mark.parametrize("name", ["", "  ", "abacus", "NVIDIA", "Tesla", "--device", "A100\nH100-SXM", "cpu"])
def test_what_is_not_known_is_refused_with_the_ways_out(name):
    message = refusal(find_device, name, "--device measured")
    for way in ("`stagemeter devices`", "--device measured"):
        assert way in message


@given(st.text(max_size=30))
def test_any_text_is_a_device_or_refused(name):
    try:
        device = find_device(name)
    except StagemeterError:
        return
    assert device in known_devices()


# Peaks


def test_peak_of_a_device():
    peak = device_peak(find_device("H100-SXM"), "bfloat16")
    assert (peak.name, peak.dtype) == ("H100-SXM", "bfloat16")
    assert (peak.flops_per_second, peak.bytes_per_second) == (989e12, 3350e9)
    assert peak.memory_bytes == 80 * 2**30
    assert "halved" in peak.source


def test_float32_is_not_tf32():
    assert device_peak(find_device("A100-SXM-80GB"), "float32").flops_per_second == 19.5e12


@pytest.mark.parametrize(("name", "dtype"), [("T4", "bfloat16"), ("V100-SXM2-16GB", "bfloat16"), ("TPU-v4", "float16")])
def test_a_data_type_that_a_device_lacks(name, dtype):
    device = find_device(name)
    message = refusal(device_peak, device, dtype)
    assert name in message
    assert dtype in message
    assert all(known in message for known in device.peak_tflops)


def test_a_given_peak():
    peak = given_peak("float16", 100, 2000)
    assert (peak.name, peak.dtype) == ("given peak", "float16")
    assert (peak.flops_per_second, peak.bytes_per_second, peak.memory_bytes) == (1e14, 2e12, None)
    assert peak.source == "--peak-tflops and --peak-gbps as given"
    assert given_peak("float16", 0.5, None).bytes_per_second is None


@pytest.mark.parametrize("value", [0, -1, -0.0, math.inf, -math.inf, math.nan])
def test_a_given_peak_is_positive_and_finite(value):
    assert "--peak-tflops" in refusal(given_peak, "bfloat16", value, 2000)
    assert "--peak-gbps" in refusal(given_peak, "bfloat16", 100, value)
