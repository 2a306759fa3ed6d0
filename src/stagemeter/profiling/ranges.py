"""Named ranges of time, and the own time of each name.

Stages nest, run on several threads or GPU streams, and overlap where work is asynchronous. The sum of their durations
counts some instants twice. Here every instant belongs to one range, the innermost.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

#: Ranges that share no more than this overlap by rounding only: older traces hold whole microseconds, CUDA events
#: single precision, and torch's exporter widens GPU annotations by a few nanoseconds so that a viewer nests them.
NEGLIGIBLE_NS = 2_000


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A named interval of time.

    Attributes
    ----------
    start, end : float
        Nanoseconds on a clock that all ranges of one analysis share. Whole numbers stay exact.
    lane : str
        Thread of a process or stream of a device that recorded it.
    """

    name: str
    start: float
    end: float
    lane: str = ""

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"range {self.name!r} ends at {self.end}, before it starts at {self.start}")


@dataclass(frozen=True, slots=True)
class OwnedRange:
    """A range, and its own time: the nanoseconds in which no range ran nested inside it."""

    range: TimeRange
    own: float


@dataclass(frozen=True)
class Partition:
    """Ranges by start with their own times, and notes on how they nest.

    Ranges of one name that several lanes recorded at once are one range here.
    """

    ranges: tuple[OwnedRange, ...]
    notes: tuple[str, ...]

    @property
    def times(self) -> dict[str, float]:
        """Own nanoseconds by name, in order of first appearance."""
        times: dict[str, float] = {}
        for owned in self.ranges:
            times[owned.range.name] = times.get(owned.range.name, 0) + owned.own
        return times


def own_times(ranges: Iterable[TimeRange], together: Mapping[str, str] | None = None) -> Partition:
    """Assign every instant to the innermost range that is active then, in O(n log n).

    The innermost range is the one that started last, and of those that started together the shortest. The times of all
    names therefore add up to the time in which any was active, whatever the nesting. The caller adds up a name with an
    entry in `together` to the name there: no note says how such names nest.
    """
    recorded = _Notes(together or {})
    merged = sorted(_one_per_name(ranges, recorded), key=_outer_first)
    return Partition(
        tuple(OwnedRange(part, own) for part, own in zip(merged, _sweep(merged, recorded), strict=True)),
        recorded.sentences(),
    )


def _outer_first(part: TimeRange) -> tuple[float, float, str, str]:
    return part.start, -part.end, part.name, part.lane


def _one_per_name(ranges: Iterable[TimeRange], notes: _Notes) -> Iterator[TimeRange]:
    """Merge ranges of one name that several lanes recorded at once, or that lie inside one another.

    An annotation appears once for each stream of its work. If the copies stayed apart, the last to start would pass for
    the innermost range, and take the time of ranges nested in the others. Overlapping ranges of one lane stay apart:
    they are two calls.
    """
    by_name: defaultdict[str, list[TimeRange]] = defaultdict(list)
    for part in sorted(ranges, key=_outer_first):
        by_name[part.name].append(part)
    for name, parts in by_name.items():
        merged, lanes = parts[0], {parts[0].lane}
        for part in parts[1:]:
            inside = part.end <= merged.end
            elsewhere = part.start < merged.end and part.lane not in lanes
            if not inside and not elsewhere:
                yield merged
                merged, lanes = part, {part.lane}
                continue
            if elsewhere:
                notes.lanes[name] = max(notes.lanes.get(name, 0), len(lanes) + 1)
            lanes.add(part.lane)
            merged = replace(merged, end=max(merged.end, part.end))
        yield merged


def _sweep(ranges: list[TimeRange], notes: _Notes) -> list[float]:
    """Return the own time of each range; `ranges` are sorted by start, outer ones first."""
    own: list[float] = [0] * len(ranges)
    # Sorted by what makes a range the innermost: the latest start, then the earliest end.
    active: list[tuple[float, float, int]] = []
    now: float = 0
    for index, part in enumerate(ranges):
        now = _pass_time(active, ranges, own, now, part.start)
        notes.compare(ranges[-active[0][-1]] if active else None, part)
        heapq.heappush(active, (-part.start, part.end, -index))
    _pass_time(active, ranges, own, now, max((part.end for part in ranges), default=0))
    return own


def _pass_time(
    active: list[tuple[float, float, int]], ranges: list[TimeRange], own: list[float], now: float, until: float
) -> float:
    """Assign the time up to an instant, and drop the innermost ranges that have ended."""
    while active:
        index = -active[0][-1]
        stop = min(ranges[index].end, until)
        if stop > now:
            own[index] += stop - now
            now = stop
        if ranges[index].end > until:
            break
        heapq.heappop(active)
    return until


@dataclass
class _Notes:
    """Relations of ranges with different names, for notes: one inside another, or across it."""

    together: Mapping[str, str]
    lanes: dict[str, int] = field(default_factory=dict)
    inside: dict[str, dict[str, None]] = field(default_factory=dict)
    across: dict[tuple[str, str], None] = field(default_factory=dict)
    latest: dict[str, TimeRange] = field(default_factory=dict)

    def compare(self, innermost: TimeRange | None, part: TimeRange) -> None:
        """Record how a new range lies to the range in which it starts."""
        if innermost is not None and not self._relate(innermost, part):
            # The latest range of each name also ends last.
            for other in self.latest.values():
                self._relate(other, part)
        self.latest[part.name] = part

    def _relate(self, outer: TimeRange, part: TimeRange) -> bool:
        """Record how two ranges lie to each other; return whether the first contains the second."""
        contained = part.end <= outer.end + NEGLIGIBLE_NS
        apart = self.together.get(outer.name, outer.name) != self.together.get(part.name, part.name)
        if apart and outer.end - part.start > NEGLIGIBLE_NS:
            if contained:
                self.inside.setdefault(outer.name, {})[part.name] = None
            else:
                self.across[outer.name, part.name] = None
        return contained

    def sentences(self) -> tuple[str, ...]:
        return (
            *(
                f"{name} was recorded in up to {count} places at once (threads or streams): counted once"
                for name, count in self.lanes.items()
            ),
            *(
                f"{outer} contains {listed(inner)}: {'its' if len(inner) == 1 else 'their'} time was taken out of it"
                for outer, inner in self.inside.items()
            ),
            *(
                f"{first} and {second} overlap, and neither contains the other: the later one is counted"
                for first, second in self.across
            ),
        )


def listed(names: Iterable[str]) -> str:
    """Join one or more names: ``a``, ``a and b``, ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
