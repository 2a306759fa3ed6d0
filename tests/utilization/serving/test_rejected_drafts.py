"""The FLOPs of drafted tokens that a server rejected, by hand."""

import pytest
from test_recorded_scenarios import SCENARIOS, of_scenario
from test_traffic import lengths_of

from stagemeter.hardware.lookup import given_peak
from stagemeter.profiling.devices import ONE_DEVICE
from stagemeter.utilization.mixed_lengths import requests_work
from stagemeter.utilization.pairing import pair
from stagemeter.utilization.serving import engine_section

PROMPT, NEW, REJECTED = 100, 11, 7
METRICS = {"engine/requests": 1, "engine/seconds": 2.0, "engine/rejected_draft_tokens": REJECTED}


def section(new: int, metrics: dict[str, float] = METRICS) -> dict:
    report, workload = of_scenario("dense_llama")
    work = requests_work(report, workload, lengths_of(PROMPT, new))
    paired = pair(report, {}, workload, given_peak("bfloat16", 1.0, None), requests=work)
    return engine_section(paired, metrics, ONE_DEVICE, work)


def test_a_rejected_token_takes_a_mean_decode_step():
    token, head, pair_macs, layers, _ = SCENARIOS["dense_llama"]["macs"]
    context = PROMPT + NEW / 2
    step = 2 * (token + head + pair_macs * layers * context)
    found = section(NEW)
    assert found["rejected_flops"] == pytest.approx(REJECTED * step, rel=1e-12)
    # The model needs none of it.
    accepted = {name: value for name, value in METRICS.items() if name != "engine/rejected_draft_tokens"}
    without = section(NEW, accepted)
    assert (found["flops"], found["mfu"]) == (without["flops"], without["mfu"])
    assert "rejected_flops" not in without


def test_without_decode_steps_the_cost_is_not_known():
    assert "rejected_flops" not in section(1)
