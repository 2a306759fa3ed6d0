"""Split the ranges of a trace into requests, the repeats of a profile."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, PREFILL, REQUEST, VISION
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.ranges import OwnedRange, TimeRange, listed, own_times
from stagemeter.profiling.readers.choices import Settled, count_steps, require_one_request, settle

_NS_PER_MS = 1e6


@dataclass(slots=True)
class _Request:
    """The stages of one request: nanoseconds and number of ranges by stage.

    Its bounds are those of its ``request`` range if there is one, else of its prefill.
    """

    start: float
    end: float
    own: dict[str, float] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)

    def add(self, owned: OwnedRange) -> None:
        name = owned.range.name
        self.own[name] = self.own.get(name, 0) + owned.own
        self.count[name] += 1


def split_repeats(ranges: Iterable[TimeRange], steps: int, source: str, vision: Sequence[str]) -> Profile:
    """Separate requests, and return the own times of the stages of each. The caller names the clock.

    A ``request`` range holds one request. Without such ranges, each prefill begins one: it includes the vision stages
    inside or before the prefill, and the decode ranges after it until the next.
    """
    given = list(ranges)
    settled = settle({part.name for part in given} - {REQUEST}, vision, prefill_suffices=True)
    outer = [part for part in given if part.name == REQUEST]
    partition = own_times(
        (part for part in given if part.name != REQUEST and not (part.name == FORWARD and FORWARD in settled.left_out)),
        together={**settled.part_of, DECODE: DECODE_TOTAL},
    )
    notes = [*settled.notes, *partition.notes]
    stages = _without_vision(partition.ranges, settled, notes)
    requests = _within(outer, stages, notes) if outer else _by_prefill(stages, source, notes)
    for request in requests:
        _sum_up(request, settled)
    order = (*vision, PREFILL, DECODE, DECODE_TOTAL, VISION, FORWARD)
    requests = _complete(requests, order, notes)
    requests, measured = _with_steps(requests, steps, source, notes)
    if vision and not {*vision, VISION, FORWARD} & {owned.range.name for owned in stages}:
        notes.append(
            "no vision stage has a range: if the vision encoder ran inside of prefill, "
            f"its time is in there, and the range is to be mapped to {FORWARD}"
        )
    return Profile(
        times_ms=_times(requests, order, notes),
        source=source,
        clock="",
        request_ms=tuple((request.end - request.start) / _NS_PER_MS for request in requests) if outer else (),
        measured=measured,
        notes=tuple(notes),
    )


def _without_vision(stages: Sequence[OwnedRange], settled: Settled, notes: list[str]) -> list[OwnedRange]:
    """Leave out ranges around the vision stages; their remaining time belongs to no stage."""
    if VISION not in settled.left_out:
        return list(stages)
    rest = sum(owned.own for owned in stages if owned.range.name == VISION) / _NS_PER_MS
    if rest:
        notes.append(f"{rest:.6g} ms of {VISION}, over all requests, lie outside of its parts and are in no stage")
    return [owned for owned in stages if owned.range.name != VISION]


def _within(outer: list[TimeRange], stages: list[OwnedRange], notes: list[str]) -> list[_Request]:
    """Sort ranges into the ``request`` ranges that they start in."""
    requests = [_Request(owned.range.start, owned.range.end) for owned in own_times(outer).ranges]
    if any(later.start < earlier.end for earlier, later in pairwise(requests)):
        notes.append("requests overlap in time: a range is counted to the request that started last before it")
    starts = [request.start for request in requests]
    outside: list[OwnedRange] = []
    for owned in stages:
        index = bisect_right(starts, owned.range.start) - 1
        if index >= 0 and owned.range.start < requests[index].end:
            requests[index].add(owned)
        else:
            outside.append(owned)
    _note_left_out(outside, f"outside of every {REQUEST} range", notes)
    return [request for request in requests if request.count]


def _by_prefill(stages: list[OwnedRange], source: str, notes: list[str]) -> list[_Request]:
    names = {owned.range.name for owned in stages}
    anchor = next((name for name in (PREFILL, FORWARD) if name in names), None)
    if anchor is None:
        return [_the_only_one(stages, source)]
    requests: list[_Request] = []
    waiting: list[OwnedRange] = []
    early: list[OwnedRange] = []
    for owned in stages:
        name = owned.range.name
        if name == anchor:
            requests.append(_Request(owned.range.start, owned.range.end))
            for vision in waiting:
                requests[-1].add(vision)
            requests[-1].add(owned)
            waiting = []
        elif name in (DECODE, DECODE_TOTAL):
            (requests[-1].add if requests else early.append)(owned)
        elif requests and owned.range.start < requests[-1].end:
            requests[-1].add(owned)
        else:
            waiting.append(owned)
    _note_left_out(early, f"before the first {anchor}", notes)
    _note_left_out(waiting, f"after the last {anchor}", notes)
    return requests


def _the_only_one(stages: list[OwnedRange], source: str) -> _Request:
    """Assign everything to one request, unless a stage shows several."""
    request = _Request(stages[0].range.start, stages[-1].range.end)
    for owned in stages:
        request.add(owned)
    require_one_request(request.count, source)
    return request


def _note_left_out(ranges: list[OwnedRange], where: str, notes: list[str]) -> None:
    if ranges:
        names = Counter(owned.range.name for owned in ranges)
        counted = listed(f"{count} of {name}" for name, count in names.items())
        notes.append(f"ranges {where} are left out: {counted}")


def _sum_up(request: _Request, settled: Settled) -> None:
    """Add parts to the aggregate that stands for them, and decode ranges of both kinds to one time."""
    for part, whole in settled.part_of.items():
        if part in request.own:
            request.own[whole] = request.own.get(whole, 0) + request.own.pop(part)
    if DECODE in request.own or DECODE_TOTAL in request.own:
        request.own[DECODE_TOTAL] = request.own.get(DECODE_TOTAL, 0) + request.own.pop(DECODE, 0)


def _complete(requests: list[_Request], order: Sequence[str], notes: list[str]) -> list[_Request]:
    """Leave out requests that lack a stage: the profiler recorded only their beginning or end."""
    stages = {stage for request in requests for stage in request.own}
    complete = [request for request in requests if request.own.keys() == stages]
    if len(complete) == len(requests):
        return requests
    lacking = [stage for stage in order if any(stage not in request.own for request in requests) and stage in stages]
    if complete:
        notes.append(
            f"{len(requests) - len(complete)} of {len(requests)} requests lack {listed(lacking)} and are left out"
        )
        return complete
    notes.append(f"not every request has {listed(lacking)}: each stage has the repeats in which it was seen")
    return requests


def _with_steps(
    requests: list[_Request], steps: int, source: str, notes: list[str]
) -> tuple[list[_Request], dict[str, int]]:
    """Set the number of decode steps and the time of one; leave out requests with other numbers of steps."""
    decoding = [request for request in requests if DECODE_TOTAL in request.own]
    counts = {_decode_ranges(request) for request in decoding}
    if len(counts) > 1 and steps in counts:
        kept = [request for request in decoding if _decode_ranges(request) == steps]
        notes.append(
            f"{len(requests) - len(kept)} of {len(requests)} requests took other than {steps} decode steps "
            "and are left out"
        )
        requests, decoding, counts = kept, kept, {steps}
    if len(counts) > 1:
        notes.append(
            f"requests took from {min(counts)} to {max(counts)} decode steps: {DECODE} is the mean over each one's "
            f"steps, and there is no {DECODE_TOTAL}, since it would be of different work"
        )
        for request in decoding:
            request.own[DECODE] = request.own.pop(DECODE_TOTAL) / _decode_ranges(request)
        return requests, {}
    if not counts:
        return requests, {}
    counted = count_steps(counts.pop(), steps, source, notes)
    for request in decoding:
        request.own[DECODE] = request.own[DECODE_TOTAL] / counted
    return requests, {} if counted == steps else {"new_tokens": counted + 1}


def _decode_ranges(request: _Request) -> int:
    """Count decode ranges; a range around all steps counts only if the steps have none."""
    return request.count[DECODE] or 1


def _times(requests: list[_Request], order: Sequence[str], notes: list[str]) -> dict[str, tuple[float, ...]]:
    times = {
        stage: tuple(request.own[stage] / _NS_PER_MS for request in requests if stage in request.own) for stage in order
    }
    empty = [stage for stage, repeats in times.items() if repeats and min(repeats) <= 0]
    if empty:
        notes.append(f"{listed(empty)} had no time of its own in some request, and has none here")
    return {stage: repeats for stage, repeats in times.items() if repeats and stage not in empty}
