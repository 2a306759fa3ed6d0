"""The number of decode steps of a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagemeter.core.errors import StagemeterError


@dataclass(frozen=True, slots=True)
class StepCount:
    """Decode steps of each request, at least 1; `measured` has ``new_tokens`` if the source shows another number."""

    steps: int
    measured: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def count_steps(ranges: int, asked: int, source: str) -> StepCount:
    """Return the decode steps of a request from the number of its decode ranges and the workload's steps."""
    if ranges == asked:
        return StepCount(asked)
    if ranges == 1:
        require_steps(asked, source)
        return StepCount(
            asked,
            notes=(f"there is one decode range a request: it counts as all {asked} decode steps of the workload",),
        )
    return StepCount(
        ranges,
        measured={"new_tokens": ranges + 1},
        notes=(
            f"there are {ranges} decode ranges a request, not {asked} as in the workload: each counts as one step, "
            f"so there are {ranges + 1} new tokens",
        ),
    )


def require_steps(asked: int, source: str) -> None:
    """Refuse decode times of a workload without decode steps."""
    if asked < 1:
        raise StagemeterError(
            f"{source}: holds decode times, but with one new token, which the prefill yields, there is no decode step; "
            "give the number of new tokens that were generated"
        )
