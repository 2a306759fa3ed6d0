"""How many decode steps a time is for."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagemeter.core.errors import StagemeterError


@dataclass(frozen=True, slots=True)
class StepCount:
    """Decode steps of each request.

    Attributes
    ----------
    steps : int
        At least 1.
    measured : dict
        ``new_tokens``, where the source shows another number than was asked for.
    notes : tuple of str
        How the number came about, where it is not plain.
    """

    steps: int
    measured: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def count_steps(ranges: int, asked: int, source: str) -> StepCount:
    """Find out how many decode steps a request took from the number of its decode ranges.

    Parameters
    ----------
    ranges : int
        Decode ranges of each request, at least 1.
    asked : int
        Decode steps of the workload that the times are said to be of.
    source : str
        What is being read, for errors.

    Raises
    ------
    StagemeterError
        If there is one range and the workload has no decode step: it may be of any number of steps.
    """
    if ranges == asked:
        return StepCount(asked)
    if ranges == 1:
        require_steps(asked, source)
        return StepCount(
            asked,
            notes=(f"there is one decode range a request: it is taken for all {asked} decode steps of the workload",),
        )
    return StepCount(
        ranges,
        measured={"new_tokens": ranges + 1},
        notes=(
            f"there are {ranges} decode ranges a request, not {asked} as in the workload: each is taken for one step, "
            f"and {ranges + 1} for the number of new tokens",
        ),
    )


def require_steps(asked: int, source: str) -> None:
    """Refuse decode times of a workload without decode steps.

    Raises
    ------
    StagemeterError
        If the workload has none.
    """
    if asked < 1:
        raise StagemeterError(
            f"{source}: holds decode times, but with one new token, which the prefill yields, there is no decode step; "
            "give the number of new tokens that were generated"
        )
