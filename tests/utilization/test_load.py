"""The devices that a rate of pages keeps busy: by stage, at the bounds and at an MFU."""

import jsonschema
import pytest

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.core.metrics import report_values
from stagemeter.core.report import report_fault, report_schema, request_total
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.utilization.load import Load, load_section
from stagemeter.utilization.memory import roofline_section

H100 = device_peak(find_device("H100-SXM"), "bfloat16")
QWEN = "qwen2.5-vl-7b"


def loaded(load, **settings):
    config = AnalysisConfig(**{"model": QWEN, **settings})
    model = describe_model(config.model)
    report = estimate_model(model, config)
    report["roofline"] = roofline_section(report, model.family, model.architecture, H100)
    report["load"] = load_section(report, H100, load)
    return report


@pytest.mark.parametrize("settings", [{}, {"batch_size": 8}, {"images_per_request": 3}, {"model": "deepseek-ocr"}])
def test_a_rate_keeps_as_many_devices_busy_as_it_is_times_the_throughput(settings):
    report = loaded(Load(1000.0), **settings)
    stages, roofline = report["load"]["stages"], report["roofline"]
    total = stages["total"]
    assert total["devices"] == pytest.approx(1000 / roofline["throughput"]["pages_per_hour"])
    of_every = roofline["throughput_every_expert"]["pages_per_hour"]
    assert total["devices_every_expert"] == pytest.approx(1000 / of_every)
    assert total["devices_at_mfu"] is None
    assert sum(row["devices"] for name, row in stages.items() if name != "total") == pytest.approx(total["devices"])


def test_a_stage_takes_its_flops_over_the_mfu_or_its_bound():
    report = loaded(Load(1000.0, 0.4))
    stages, flops = report["load"]["stages"], request_total(report, "flops")
    # 1,000 pages an hour, and 989 TFLOP/s.
    assert stages["prefill"]["devices_at_mfu"] == pytest.approx(
        1000 / 3600 * flops["prefill"] / (0.4 * 989e12), rel=1e-3
    )
    assert stages["prefill"]["mfu"] == 0.4
    assert stages["decode_total"]["devices_at_mfu"] == stages["decode_total"]["devices"]
    values = report_values(report)
    assert values["load/devices_at_mfu"] == stages["total"]["devices_at_mfu"] > values["load/devices"]
    jsonschema.validate(report, report_schema())
    assert report_fault(report) is None


def test_measured_mfu_is_of_each_stage():
    measured = {"vit": 0.3, "prefill": 0.5, "decode": 0.001}
    stages = loaded(Load(1000.0, measured, "run 1"))["load"]["stages"]
    given = loaded(Load(1000.0, 0.5))["load"]["stages"]
    assert stages["prefill"] == given["prefill"]
    assert stages["vit"]["devices_at_mfu"] == pytest.approx(given["vit"]["devices_at_mfu"] * 5 / 3)
    assert stages["decode_total"]["mfu"] == 0.001
    # The run says nothing about the merger.
    assert (stages["merger"]["devices_at_mfu"], stages["total"]["devices_at_mfu"]) == (None, None)


def test_what_does_not_fit_takes_no_number_of_devices():
    total = loaded(Load(1000.0, 0.4), batch_size=4096)["load"]["stages"]["total"]
    assert {total["devices"], total["devices_at_mfu"], total["devices_every_expert"]} == {None}


def test_a_text_model_takes_requests_and_a_request_of_one_token_no_decode_step():
    section = loaded(Load(10.0), model="llama-3.1-8b", new_tokens=1)["load"]
    assert section["unit"] == "request"
    assert section["stages"]["total"]["devices"] == section["stages"]["prefill"]["devices"] > 0
    assert "decode_total" not in section["stages"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0,), "pages_per_hour: 0 is no rate"),
        ((float("inf"),), "pages_per_hour: inf is no rate"),
        ((1.0, 0.0), "mfu: 0 is no share of a peak. Give one above 0 and up to 1"),
        ((1.0, 40.0), "up to 1, such as 0.4 for 40 %"),
        ((1.0, 40), "up to 1, such as 0.4 for 40 %"),
    ],
)
def test_rates_and_shares_that_cannot_be_are_refused(values, message):
    with pytest.raises(StagemeterError, match=message):
        Load(*values)


def test_a_share_may_be_a_whole_number():
    assert loaded(Load(10.0, 1))["load"] == loaded(Load(10.0, 1.0))["load"]
