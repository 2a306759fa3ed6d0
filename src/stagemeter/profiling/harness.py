"""Running a workload for real and taking the time of its stages, again and again."""

from __future__ import annotations

import gzip
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from stagemeter.core.scratch import scratch_folder
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL
from stagemeter.models.families.deepseek_ocr.family import VISION_MODULES
from stagemeter.profiling.clock import StageClock, cost_of_a_range
from stagemeter.profiling.ranges import own_times
from stagemeter.profiling.routing import count_experts

if TYPE_CHECKING:
    import torch

    from stagemeter.profiling.session import DeepSeekOCRSession

#: At most how many decode steps a trace shows: they are all alike, and a trace of hundreds cannot be looked at.
TRACED_STEPS = 8

OnStage = Callable[[str, int, str], None]


@dataclass(frozen=True)
class Request:
    """What is run: token ids, pages, and how many tokens to generate."""

    input_ids: torch.Tensor
    model_kwargs: dict[str, Any]
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """One measured request.

    Attributes
    ----------
    times_ms : dict
        Own time of each stage in milliseconds; ``decode`` is the mean step, ``decode_total`` all of them.
    ranges : dict
        How many ranges of each stage were timed.
    request_ms : float
        Wall time of the whole request.
    notes : tuple of str
        How the ranges lay in one another.
    """

    times_ms: dict[str, float]
    ranges: dict[str, int]
    request_ms: float
    notes: tuple[str, ...]


def warm_up(
    session: DeepSeekOCRSession, request: Request, warmup: int, on_stage: OnStage = lambda kind, number, stage: None
) -> dict[str, float]:
    """Run a request that is not measured some times, and count in the first of them which experts it reads.

    Parameters
    ----------
    session : DeepSeekOCRSession
        Model and device.
    request : Request
        What to run.
    warmup : int
        How many times.
    on_stage : callable
        Told of each stage that begins: ``warm-up``, the number of the request from one, and the stage.

    Returns
    -------
    dict
        See `stagemeter.profiling.routing.count_experts`; empty without a warm-up.
    """
    experts: dict[str, float] = {}
    for number in range(1, warmup + 1):
        on_enter = _once_a_stage(on_stage, "warm-up", number)
        if number == 1:
            experts = count_experts(session, request, on_enter)
        else:
            _run(session, request, on_enter)
    return experts


def measure(
    session: DeepSeekOCRSession,
    request: Request,
    repeats: int,
    on_stage: OnStage = lambda kind, number, stage: None,
) -> Iterator[Repeat]:
    """Run a request over and over, and take the time of its stages.

    Parameters
    ----------
    session : DeepSeekOCRSession
        Model and device.
    request : Request
        What to run.
    repeats : int
        How many times.
    on_stage : callable
        Told of each stage that begins: ``repeat``, its number from one, and the stage.

    Yields
    ------
    Repeat
        Each as soon as it is measured, so that those there are survive an interrupt.
    """
    _forget_peak(session.device)
    for number in range(1, repeats + 1):
        yield _run(session, request, _once_a_stage(on_stage, "repeat", number))


def _once_a_stage(on_stage: OnStage, kind: str, number: int) -> Callable[[str], None]:
    """Tell of a stage when it begins; a request has a range for every decode step, and once is enough for people."""
    last = ""

    def tell(stage: str) -> None:
        nonlocal last
        if stage != last:
            last = stage
            on_stage(kind, number, stage)

    return tell


def _run(session: DeepSeekOCRSession, request: Request, on_enter: Callable[[str], None]) -> Repeat:
    clock = StageClock(session.device, on_enter)
    clock.synchronize()
    start = time.perf_counter_ns()
    session.run_inference(request.input_ids, request.model_kwargs, request.new_tokens, clock)
    ranges = clock.take()
    request_ms = (time.perf_counter_ns() - start) / 1e6
    partition = own_times(ranges)
    times = {stage: nanoseconds / 1e6 for stage, nanoseconds in partition.times.items()}
    counts = Counter(timed.name for timed in ranges)
    if DECODE in times:
        times[DECODE_TOTAL] = times[DECODE]
        times[DECODE] /= counts[DECODE]
    return Repeat(times, dict(counts), request_ms, partition.notes)


def overhead(repeats: Sequence[Repeat], device: torch.device) -> dict[str, float]:
    """Share of each stage's time that taking it cost: of its own ranges, and of those that are nested in it."""
    cost = cost_of_a_range(device)
    counts = repeats[0].ranges
    nested = sum(counts.get(stage, 0) for stage in VISION_MODULES)
    spent = {stage: cost.inside * (1 if stage == DECODE else count) for stage, count in counts.items()}
    spent["prefill"] += cost.around * nested
    return {
        stage: milliseconds / median(repeat.times_ms[stage] for repeat in repeats)
        for stage, milliseconds in spent.items()
    }


def trace(session: DeepSeekOCRSession, request: Request) -> bytes:
    """Run a request once more under torch's profiler.

    Returns
    -------
    bytes
        A Chrome trace, compressed, with a user annotation per stage; of at most `TRACED_STEPS` decode steps.
    """
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    new_tokens = min(request.new_tokens, TRACED_STEPS + 1)
    with torch.profiler.profile(activities=activities) as profiler:
        session.run_inference(request.input_ids, request.model_kwargs, new_tokens)
        StageClock(session.device).synchronize()
    with scratch_folder() as folder:
        path = folder / "trace.json"
        profiler.export_chrome_trace(str(path))
        return gzip.compress(path.read_bytes(), compresslevel=6)


def peak_memory(device: torch.device) -> int:
    """Most memory in bytes that was in use: of the GPU by torch's allocator, elsewhere by this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
