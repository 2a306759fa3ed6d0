"""Choose between the CPU's scopes and the GPU ranges of the same file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stagemeter.core.stage_names import FORWARD, PREFILL
from stagemeter.profiling.ranges import TimeRange, listed


@dataclass(frozen=True, slots=True)
class Chosen:
    """Ranges of one clock, since two clocks do not show their nesting, and notes on what the choice leaves out."""

    ranges: Sequence[TimeRange]
    on_gpu: bool
    notes: tuple[str, ...]


def choose_clock(cpu: Sequence[TimeRange], gpu: Sequence[TimeRange], gpu_worked: bool) -> Chosen:
    """Prefer the GPU's time, since its work goes on after the end of the scope that launched it.

    A stage without GPU ranges is left out rather than timed by the other clock. If the prefill, which separates
    requests, has no GPU range, all stages take the CPU's time.
    """
    on_cpu, on_gpu = Counter(part.name for part in cpu), Counter(part.name for part in gpu)
    lacking = [stage for stage in on_cpu if stage not in on_gpu]
    asynchronous = (
        "the GPU worked, and a CPU scope may end before the work that it launched: these times hold only if the "
        "program waited for the GPU at the end of each stage"
    )
    if not gpu:
        return Chosen(cpu, False, (asynchronous,) if gpu_worked else ())
    if (PREFILL if PREFILL in on_cpu else FORWARD) in lacking:
        reason = f"{listed(lacking)} {'has' if len(lacking) == 1 else 'have'} CPU scopes alone, so those are taken"
        return Chosen(cpu, False, (f"{reason} for all stages", asynchronous))
    notes = [
        f"{stage} has CPU scopes but no GPU range and is left out; a GPU range around it would include waiting for it"
        for stage in lacking
    ]
    notes += [
        f"{stage} has {on_cpu[stage]} CPU scopes but {on_gpu[stage]} GPU ranges, which are taken"
        for stage in on_gpu
        if stage in on_cpu and on_cpu[stage] != on_gpu[stage]
    ]
    return Chosen(gpu, True, tuple(notes))
