"""Run a workload for real, and time its stages, again and again."""

from __future__ import annotations

import gzip
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from stagemeter.core.scratch import scratch_folder
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.profiling.clock import StageClock, annotate, cost_of_a_range
from stagemeter.profiling.ranges import own_times

if TYPE_CHECKING:
    import torch
    from torch import nn

    from stagemeter.profiling.request import Request
    from stagemeter.profiling.running import Session

#: Decode steps that a trace shows at most: they are alike, and a trace of hundreds is too long to read.
TRACED_STEPS = 8

OnStage = Callable[[str, int, str], None]


@dataclass(frozen=True, slots=True)
class Repeat:
    """One measured request: own times and number of ranges by stage, wall time, and notes on how the ranges nest.

    ``decode`` is the mean step, ``decode_total`` all of them.
    """

    times_ms: dict[str, float]
    ranges: dict[str, int]
    request_ms: float
    notes: tuple[str, ...]


def warm_up(
    session: Session, workload: Workload, warmup: int, on_stage: OnStage = lambda kind, number, stage: None
) -> dict[str, float]:
    """Run a request without measuring it, and count the experts that the first run reads, see `count_experts`.

    `on_stage` gets ``warm-up``, the number of the request from one, and each stage that begins.
    """
    experts: dict[str, float] = {}
    for number in range(1, warmup + 1):
        on_enter = _once_a_stage(on_stage, "warm-up", number)
        if number == 1:
            experts = count_experts(session, session.prepare(workload), on_enter)
        else:
            _run(session, workload, on_enter)
    return experts


def measure(
    session: Session,
    workload: Workload,
    repeats: int,
    on_stage: OnStage = lambda kind, number, stage: None,
) -> Iterator[Repeat]:
    """Run a request again and again, and yield each measurement as it is made, so that an interrupt loses none.

    `on_stage` gets ``repeat``, its number from one, and each stage that begins.
    """
    _forget_peak(session.device)
    for number in range(1, repeats + 1):
        yield _run(session, workload, _once_a_stage(on_stage, "repeat", number))


def _once_a_stage(on_stage: OnStage, kind: str, number: int) -> Callable[[str], None]:
    """Report a stage once in a row, although each decode step is a range of its own."""
    last = ""

    def tell(stage: str) -> None:
        nonlocal last
        if stage != last:
            last = stage
            on_stage(kind, number, stage)

    return tell


def _run(session: Session, workload: Workload, on_enter: Callable[[str], None]) -> Repeat:
    request, clock = session.prepare(workload), StageClock(session.device, on_enter)
    clock.synchronize()
    start = time.perf_counter_ns()
    session.run(request, clock)
    ranges = clock.take()
    request_ms = (time.perf_counter_ns() - start) / 1e6
    partition = own_times(ranges)
    times = {stage: nanoseconds / 1e6 for stage, nanoseconds in partition.times.items()}
    counts = Counter(timed.name for timed in ranges)
    if DECODE in times:
        times[DECODE_TOTAL] = times[DECODE]
        times[DECODE] /= counts[DECODE]
    return Repeat(times, dict(counts), request_ms, partition.notes)


def count_experts(
    session: Session, request: Request, on_enter: Callable[[str], None] = lambda stage: None
) -> dict[str, float]:
    """Run a request and count the experts that its tokens choose. The count takes time: do not measure this request.

    For ``prefill`` and ``decode``, return how many different experts of a layer the tokens of one pass choose: the mean
    over layers with experts and over decode steps. Return nothing for a model without experts.
    """
    counts: dict[str, list[int]] = defaultdict(list)
    current = ""

    @contextmanager
    def scope(name: str) -> Iterator[None]:
        nonlocal current
        on_enter(name)
        if name in (PREFILL, DECODE):
            current = name
        with annotate(name):
            yield

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        # Called with the hidden states, the experts that each token chose, and their weights.
        chosen = next((value for value in arguments if not value.is_floating_point()), None)
        if chosen is not None:
            counts[current].append(chosen.unique().numel())

    def count_scores(module: nn.Module, arguments: tuple[Any, ...], out: tuple[Any, ...]) -> None:
        # Every expert runs on every token; scores are zero but for the chosen ones (modeling_llama4.py, Llama4Router).
        counts[current].append(int((out[0] > 0).any(0).sum()))

    with ExitStack() as hooks:
        for name, module in session.model.named_modules():
            if type(module).__name__ == "Llama4Router":
                hooks.callback(module.register_forward_hook(count_scores).remove)
            elif name.endswith("experts") and hasattr(module, "num_experts"):
                hooks.callback(module.register_forward_pre_hook(count).remove)
        session.run(request, scope)
    return {stage: fmean(found) for stage, found in counts.items()}


def overhead(repeats: Sequence[Repeat], device: torch.device) -> dict[str, float]:
    """Return the share of each stage's time that timing it cost: its own ranges and those nested in it."""
    cost = cost_of_a_range(device)
    counts = repeats[0].ranges
    nested = sum(count for stage, count in counts.items() if stage not in (PREFILL, DECODE))
    spent = {stage: cost.inside * (1 if stage == DECODE else count) for stage, count in counts.items()}
    spent[PREFILL] += cost.around * nested
    return {
        stage: milliseconds / median(repeat.times_ms[stage] for repeat in repeats)
        for stage, milliseconds in spent.items()
    }


def trace(session: Session, workload: Workload) -> bytes:
    """Run a request under torch's profiler; return a gzipped Chrome trace of at most `TRACED_STEPS` decode steps."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    request = session.prepare(replace(workload, new_tokens=min(workload.new_tokens, TRACED_STEPS + 1)))
    with torch.profiler.profile(activities=activities) as profiler:
        session.run(request)
        StageClock(session.device).synchronize()
    with scratch_folder() as folder:
        path = folder / "trace.json"
        profiler.export_chrome_trace(str(path))
        return gzip.compress(path.read_bytes(), compresslevel=6)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU by torch's allocator, elsewhere of this process."""
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
