"""Choices that readers share: the clock, a stage or its parts, and the number of decode steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, FORWARD, PREFILL, VISION
from stagemeter.profiling.ranges import TimeRange, listed

#: Clocks of NVTX ranges.
NVTX_ON_GPU = "GPU ranges (NVTX ranges projected onto their GPU work)"
NVTX_ON_CPU = "CPU ranges (NVTX)"


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


@dataclass(frozen=True, slots=True)
class Settled:
    """Stages that contain one another by definition, and which of them count, so that no time counts twice.

    `left_out` names aggregates whose parts are all timed. `part_of` maps other parts to the aggregate that counts them.
    """

    left_out: tuple[str, ...]
    part_of: dict[str, str]
    notes: tuple[str, ...]

    def kept(self, stages: Mapping[str, Any]) -> dict[str, Any]:
        """Return the stages that count by themselves."""
        return {name: value for name, value in stages.items() if name not in (*self.left_out, *self.part_of)}


def settle(names: Collection[str], vision: Sequence[str], prefill_suffices: bool) -> Settled:
    """Keep the parts of ``vision`` or ``forward`` if all of them have a time, and the aggregate if only some have one.

    With `prefill_suffices`, ``prefill`` alone is enough to leave ``forward`` out. That holds for ranges, since
    frameworks put a range of the name forward around every pass of the decoder.
    """
    left_out: list[str] = []
    part_of: dict[str, str] = {}
    if FORWARD in names:
        covered = VISION in names or all(stage in names for stage in vision)
        if PREFILL in names and (prefill_suffices or covered):
            left_out.append(FORWARD)
        else:
            part_of |= {stage: FORWARD for stage in (*vision, PREFILL, VISION) if stage in names}
    if VISION in names and VISION not in part_of:
        if all(stage in names for stage in vision):
            left_out.append(VISION)
        else:
            part_of |= {stage: VISION for stage in vision if stage in names}
    notes = [f"{name} is left out, since its parts are timed by themselves" for name in left_out]
    for aggregate in dict.fromkeys(part_of.values()):
        parts = [part for part, whole in part_of.items() if whole == aggregate]
        notes.append(
            f"{listed(parts)} {'is' if len(parts) == 1 else 'are'} counted as part of {aggregate}, "
            "since not all of its parts are timed by themselves"
        )
    return Settled(tuple(left_out), part_of, tuple(notes))


def count_steps(ranges: int, asked: int, source: str, notes: list[str]) -> int:
    """Return the decode steps of a request, at least 1, from the number of its decode ranges and the workload's steps.

    `notes` gets the reason where the numbers differ.
    """
    if ranges == asked:
        return asked
    if ranges == 1:
        require_steps(asked, source)
        notes.append(f"there is one decode range a request: it counts as all {asked} decode steps of the workload")
        return asked
    notes.append(
        f"there are {ranges} decode ranges a request, not {asked} as in the workload: each counts as one step, "
        f"so there are {ranges + 1} new tokens"
    )
    return ranges


def require_one_request(ranges: Mapping[str, int], source: str) -> None:
    """Refuse several ranges of a stage where none shows the beginning of a request."""
    several = next((stage for stage, count in ranges.items() if count > 1 and stage != DECODE), None)
    if several is not None:
        raise StagemeterError(
            f"{source}: {ranges[several]} ranges of {several} but none of {PREFILL} do not show where a request "
            f"begins. Map {PREFILL}, or a range around each request, such as --map 'request=ProfilerStep#*'"
        )


def require_steps(asked: int, source: str) -> None:
    """Refuse decode times of a workload without decode steps."""
    if asked < 1:
        raise StagemeterError(
            f"{source}: it has decode times, but a request of one new token, which the prefill yields, has no decode "
            "step. Give the number of new tokens that were generated as --new-tokens"
        )
