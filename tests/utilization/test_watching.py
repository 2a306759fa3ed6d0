"""The numbers of intervals, and that they add up to those of the whole time."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter.analysis.analyze import estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_measured
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.readers.energy import Energy
from stagemeter.profiling.readers.engines.pages import page_of
from stagemeter.profiling.readers.live import Served
from stagemeter.profiling.readers.prometheus import growth
from stagemeter.utilization.watching import Watching

sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))
import itertools

from replayed_server import CONFIGS, LLAMA, REQUESTS, page

SCENARIO = "prefix_cache"
DONE = len(REQUESTS[SCENARIO])
EXACT = json.loads((CONFIGS / "scenarios.json").read_text())[SCENARIO]["vllm_estimate"]
PAGES = [page_of(f"page {done}", page(SCENARIO, done)) for done in range(DONE + 1)]
CONFIG = AnalysisConfig(model=str(LLAMA))
MODEL = describe_model(CONFIG.model)
REPORT = estimate_model(MODEL, CONFIG)
PEAK = device_peak(find_device("H100-SXM"), "bfloat16")


def watching(**changes) -> Watching:
    return replace(Watching(REPORT, lambda measured: plan_measured(CONFIG, MODEL, measured), PEAK), **changes)


def served(first: int, last: int, seconds: float = 10.0, server: str = "one") -> Served:
    return Served(growth(PAGES[first], PAGES[last]).of_server(server), seconds)


@settings(max_examples=12)
@given(st.sets(st.integers(1, DONE - 1)))
def test_intervals_add_up_to_the_whole(cuts):
    points = [0, *sorted(cuts), DONE]
    meter, whole = watching(), watching()
    intervals = [meter.add(served(*ends)) for ends in itertools.pairwise(points)]
    (one,) = [whole.add(served(0, DONE, 10.0 * len(intervals)))]
    assert meter.whole.profile().lengths == whole.whole.profile().lengths
    rate = PEAK.flops_per_second

    def added(name: str) -> float:
        return sum(interval["serving"].get(name, interval["serving"]["mfu"]) * 10.0 * rate for interval in intervals)

    # The more intervals, the nearer are the bounds, and the truth lies between.
    for work in (one["serving"]["mfu_least"] * 10.0 * len(intervals) * rate, added("mfu_least")):
        assert work <= EXACT * (1 + 1e-12)
    assert one["serving"]["mfu_least"] * len(intervals) * 10.0 * rate <= added("mfu_least") * (1 + 1e-12)
    assert added("mfu_most") <= one["serving"]["mfu_most"] * len(intervals) * 10.0 * rate * (1 + 1e-12)
    assert added("mfu_most") * (1 + 1e-12) >= EXACT
    for name in ("requests_per_hour", "prompt_tokens_per_second", "new_tokens_per_second"):
        mean = sum(interval["serving"][name] for interval in intervals) / len(intervals)
        assert mean == pytest.approx(one["serving"][name])


def test_single_requests_are_exact():
    meter = watching()
    intervals = [meter.add(served(done, done + 1)) for done in range(DONE)]
    assert sum(interval["serving_flops"]["total"] for interval in intervals) == EXACT
    for interval in intervals:
        assert interval["serving"]["mfu_least"] == interval["serving"]["mfu"] == interval["serving"]["mfu_most"]
        assert interval["serving_flops"]["total"] == sum(
            flops for stage, flops in interval["serving_flops"].items() if stage != "total"
        )


def test_bytes_are_at_least_the_weights_of_each_pass():
    meter = watching()
    (one,) = [meter.add(served(0, DONE))["serving"]]
    passes, rate = meter.whole.processed["passes"], PEAK.bytes_per_second * 10.0
    assert passes == 69
    # The server has weights of 2,228,224 elements in its layers, and 262,144 in the output head.
    assert passes * 2 * (2228224 + 262144) < one["mbu_least"] * rate < one["engine_mbu"] * rate
    # Each of two devices of an engine moves half of them, and the estimate is of each.
    (shared,) = [watching(devices_per_engine=2).add(served(0, DONE))["serving"]]
    assert shared["mbu_least"] == pytest.approx(one["mbu_least"] / 2)
    assert shared["engine_mbu"] == pytest.approx(one["engine_mbu"])
    unknown = replace(PEAK, bytes_per_second=None)
    assert not {"mbu_least", "engine_mbu"} & watching(peak=unknown).add(served(0, DONE))["serving"].keys()


def test_servers_of_different_spans_are_held_against_their_device_seconds():
    meter = watching(devices_per_engine=2)
    interval = meter.add(served(0, 1, 10.0) + served(0, 1, 30.0, server="two"))
    (alone,) = [watching().add(served(0, 1, 1.0))]
    flops = 2 * alone["serving_flops"]["total"]
    assert interval["serving_flops"]["total"] == flops
    assert interval["serving"]["mfu"] == pytest.approx(flops / (PEAK.flops_per_second * 2 * 40.0))
    assert interval["serving"]["requests_per_hour"] == pytest.approx(2 * 3600 / 20)
    assert interval["serving"]["engines"] == 2


def test_idle_time_has_no_flops():
    interval = watching().add(served(3, 3))
    assert interval["serving"]["mfu"] == 0
    assert interval["serving_flops"] == {}
    assert "prefix_hit_rate" not in interval["serving"]


def test_energy_is_of_what_was_served_since_it_was_last_known():
    meter = watching()
    meter.add(served(0, 1))
    first = meter.use(Energy(500.0, 10.0))
    assert first == {"joules": 500.0, "watts": 50.0, "joules_per_new_token": 500 / 8, "joules_per_request": 500.0}
    # A meter that gave nothing for an interval covers both.
    meter.add(served(1, 2))
    meter.add(served(2, 4))
    assert meter.use(Energy(900.0, 20.0))["joules_per_request"] == 300.0
    # Something was lost: its energy is of no request.
    meter.add(served(4, 5))
    meter.lose()
    meter.add(served(5, 6))
    assert meter.use(Energy(100.0, 10.0))["joules_per_new_token"] == 25.0
    assert meter.energy == Energy(1500.0, 40.0)
    assert meter.powered.requests == 5
