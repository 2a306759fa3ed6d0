"""Stages that were timed as one and also by themselves: keep one of the two, so that no time counts twice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stagemeter.core.stage_names import FORWARD, PREFILL, VISION
from stagemeter.profiling.ranges import listed


@dataclass(frozen=True, slots=True)
class Settled:
    """The decision on stages that contain one another by definition.

    `left_out` names aggregates whose parts are all timed. `part_of` maps other parts to the aggregate that counts them.
    """

    left_out: tuple[str, ...]
    part_of: dict[str, str]
    notes: tuple[str, ...]


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
    return Settled(tuple(left_out), part_of, _notes(left_out, part_of))


def _notes(left_out: list[str], part_of: dict[str, str]) -> tuple[str, ...]:
    notes = [f"{name} is left out, since its parts are timed by themselves" for name in left_out]
    for aggregate in dict.fromkeys(part_of.values()):
        parts = [part for part, whole in part_of.items() if whole == aggregate]
        notes.append(
            f"{listed(parts)} {'is' if len(parts) == 1 else 'are'} counted as part of {aggregate}, "
            "since not all of its parts are timed by themselves"
        )
    return tuple(notes)
