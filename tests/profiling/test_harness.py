"""The harness on a small model with real weights: its stages, its repeats, and that they explain the request."""

import gzip
import json
import statistics
import time
from dataclasses import replace

import pytest
import torch

from stagemeter import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.core.workload import Workload
from stagemeter.models.lookup import describe_model
from stagemeter.profiling import harness
from stagemeter.profiling.clock import StageClock, cost_of_a_range
from stagemeter.profiling.harness import TRACED_STEPS, measure, peak_memory
from stagemeter.profiling.ranges import own_times
from stagemeter.profiling.running import Session

CPU = torch.device("cpu")


SMALL = describe_model("deepseek-ocr-small")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.build(SMALL, "cpu", "float32")


@pytest.fixture(scope="module")
def workload() -> Workload:
    return plan_request(AnalysisConfig(mode="tiny", dtype="float32", new_tokens=4), SMALL)


def test_every_stage_is_timed_and_together_they_are_the_request(session, workload):
    harness.warm_up(session, workload, 1)
    (repeat,) = measure(session, workload, repeats=1)
    assert set(repeat.times_ms) == {"sam", "clip", "projector", "prefill", "decode", "decode_total"}
    assert all(time_ms > 0 for time_ms in repeat.times_ms.values())
    assert repeat.ranges == {"sam": 1, "clip": 1, "projector": 1, "prefill": 1, "decode": 3}
    assert repeat.times_ms["decode"] == pytest.approx(repeat.times_ms["decode_total"] / 3)
    stages = sum(time_ms for stage, time_ms in repeat.times_ms.items() if stage != "decode")
    assert stages <= repeat.request_ms
    assert repeat.notes == ("prefill contains sam, clip and projector: their time was taken out of it",)


def test_one_token_takes_no_decode_step(session, workload):
    (repeat,) = measure(session, replace(workload, new_tokens=1), repeats=1)
    assert "decode" not in repeat.times_ms
    assert "decode_total" not in repeat.times_ms


def test_warm_up_is_run_and_not_counted(session, workload):
    told = []
    harness.warm_up(session, workload, 2, lambda *what: told.append(what))
    repeats = list(measure(session, workload, 3, lambda *what: told.append(what)))
    assert len(repeats) == 3
    assert list(dict.fromkeys((kind, number) for kind, number, _ in told)) == [
        ("warm-up", 1),
        ("warm-up", 2),
        ("repeat", 1),
        ("repeat", 2),
        ("repeat", 3),
    ]
    assert harness.warm_up(session, workload, 0) == {}
    # Each stage once, however many decode steps there are.
    first = [stage for kind, number, stage in told if (kind, number) == ("repeat", 1)]
    assert first == ["prefill", "sam", "clip", "projector", "decode"]


def test_repeats_come_one_by_one(session, workload):
    repeats = measure(session, workload, repeats=1000)
    assert next(repeats).request_ms > 0
    repeats.close()


def test_trace_shows_the_stages(session, workload):
    longer = replace(workload, new_tokens=TRACED_STEPS + 5)
    events = json.loads(gzip.decompress(harness.trace(session, longer)))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert names.count("prefill") == names.count("sam") == names.count("clip") == names.count("projector") == 1
    assert names.count("decode") == TRACED_STEPS


def test_clock_takes_the_time_of_nested_ranges(monkeypatch):
    now = 5_000
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now)
    clock = StageClock(CPU)
    with clock("outer"):
        now += 20
        with clock("inner"):
            now += 30
    with clock("outer"):
        now += 10
    assert own_times(clock.take()).times == {"outer": 30, "inner": 30}
    assert clock.take() == []


def test_clock_tells_real_time():
    clock = StageClock(CPU)
    before = time.perf_counter_ns()
    with clock("asleep"):
        time.sleep(0.01)
    assert 10e6 <= own_times(clock.take()).times["asleep"] <= time.perf_counter_ns() - before


def test_range_is_timed_when_what_runs_in_it_fails():
    clock = StageClock(CPU)
    with pytest.raises(RuntimeError, match="on purpose"), clock("broken"):
        raise RuntimeError("on purpose")
    assert [timed.name for timed in clock.take()] == ["broken"]


def test_taking_the_time_costs_microseconds():
    # The least of some tries: other work on the machine takes time, too.
    costs = [cost_of_a_range(CPU) for _ in range(5)]
    assert all(cost.inside > 0 for cost in costs)
    assert min(cost.inside for cost in costs) < min(cost.around for cost in costs) < 1


def test_overhead_is_a_share_of_the_stage(session, workload):
    repeats = list(measure(session, workload, repeats=2))
    shares = harness.overhead(repeats, CPU)
    assert set(shares) == {"sam", "clip", "projector", "prefill", "decode"}
    assert all(share > 0 for share in shares.values())
    spent = {
        stage: share * statistics.median(repeat.times_ms[stage] for repeat in repeats)
        for stage, share in shares.items()
    }
    # What is nested in the prefill costs it more than its own range does.
    assert spent["prefill"] > spent["decode"]


def test_peak_memory_is_at_least_what_is_held():
    held = torch.zeros(2**26)
    assert peak_memory(CPU) > held.numel() * held.element_size()


class FakeEvent:
    """A CUDA event on a clock of our own, whose differences are as coarse as CUDA's: 24 bits of milliseconds."""

    now_ms = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.ms = FakeEvent.now_ms

    def elapsed_time(self, later: "FakeEvent") -> float:
        return float(torch.tensor(later.ms - self.ms, dtype=torch.float32))


@pytest.fixture
def cuda_clock(monkeypatch) -> StageClock:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    FakeEvent.now_ms = 0.0
    return StageClock(torch.device("cuda:0"))


def test_events_are_told_apart_after_minutes(cuda_clock):
    for step in range(3):
        with cuda_clock("prefill"):
            FakeEvent.now_ms += 0.25
            with cuda_clock("sam"):
                FakeEvent.now_ms += 0.0005
            FakeEvent.now_ms += 1 / 3
        FakeEvent.now_ms += 200_000.0 * (step < 2)
    ranges = cuda_clock.take()
    assert cuda_clock.kind == "CUDA events"
    assert [timed.name for timed in ranges] == ["sam", "prefill"] * 3
    times = own_times(ranges).times
    # To a nanosecond for each of the marks, although the last of them are minutes away from the first.
    assert times["sam"] == pytest.approx(3 * 500, abs=12)
    assert times["prefill"] == pytest.approx(3 * 583_333, abs=12)
    assert cuda_clock.take() == []


def test_events_at_one_time_are_ranges_of_no_length(cuda_clock):
    with cuda_clock("prefill"), cuda_clock("sam"):
        pass
    assert own_times(cuda_clock.take()).times == {"prefill": 0, "sam": 0}
