"""Named ranges of time, and the time that each name has of its own.

Stages are nested in one another, run on several threads or GPU streams, and overlap where work is asynchronous. Adding
up their durations would count some instants twice. Here every instant belongs to one range, the innermost.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

#: Ranges that share no more than this overlap by rounding alone: older traces hold whole microseconds, CUDA events
#: single precision, and torch's exporter widens GPU annotations by a few nanoseconds so that a viewer nests them.
NEGLIGIBLE_NS = 2_000


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A named stretch of time.

    Attributes
    ----------
    name : str
        What ran.
    start, end : float
        Nanoseconds on a clock that all ranges that are looked at together share. Whole numbers stay exact.
    lane : str
        Where it was recorded: a thread of a process, or a stream of a device.
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
    """A range, and the nanoseconds of it in which nothing ran nested inside of it."""

    range: TimeRange
    own: float


@dataclass(frozen=True)
class Partition:
    """Ranges with the time of their own.

    Attributes
    ----------
    ranges : tuple of OwnedRange
        By start. Ranges of one name that were recorded in several places at once are one range here.
    notes : tuple of str
        Which names contain which, which overlap, and which were recorded several times.
    """

    ranges: tuple[OwnedRange, ...]
    notes: tuple[str, ...]

    @property
    def times(self) -> dict[str, float]:
        """Nanoseconds of its own by name, in order of first appearance."""
        times: dict[str, float] = {}
        for owned in self.ranges:
            times[owned.range.name] = times.get(owned.range.name, 0) + owned.own
        return times


def own_times(ranges: Iterable[TimeRange], together: Mapping[str, str] | None = None) -> Partition:
    """Give every instant to the innermost range that is active at it.

    The innermost is the one that started last, and of those that started together the shortest. The times of all names
    therefore add up to the time in which any of them was active, whatever the nesting, and do not depend on the order
    in which the ranges come. Takes O(n log n).

    Parameters
    ----------
    ranges : iterable of TimeRange
        In any order, from any number of lanes.
    together : mapping, optional
        Names that will be added up to another one: how they lie to that one and to each other is not worth a note.

    Returns
    -------
    Partition
        The ranges with the time of their own, and what one should know about how they lie.
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
    """Merge ranges of one name that were recorded in several lanes at once, or that lie inside one another.

    An annotation appears once per stream that its work went to. Left apart, the copy that starts last would pass for
    the innermost range and take the time of what is nested in the others. Overlapping ranges of one lane stay apart:
    they are two of a kind.
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
    """Return the time that each range has of its own; `ranges` by start, outer ones first."""
    own: list[float] = [0] * len(ranges)
    # Indices below what makes them the innermost: the latest start, then the earliest end.
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
    """Hand out the time up to an instant, and drop the innermost ranges that have ended by it."""
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
    """How names lie to each other, collected on the way."""

    together: Mapping[str, str]
    lanes: dict[str, int] = field(default_factory=dict)
    inside: dict[str, dict[str, None]] = field(default_factory=dict)
    across: dict[tuple[str, str], None] = field(default_factory=dict)
    latest: dict[str, TimeRange] = field(default_factory=dict)

    def compare(self, innermost: TimeRange | None, part: TimeRange) -> None:
        """Record how a range that starts lies to what it starts in."""
        if innermost is not None and not self._relate(innermost, part):
            # Of each name, the range that started last is also the one that ends last.
            for other in self.latest.values():
                self._relate(other, part)
        self.latest[part.name] = part

    def _relate(self, outer: TimeRange, part: TimeRange) -> bool:
        """Record how two ranges lie to each other, and return whether the first contains the second."""
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
    """Write at least one name in a row: ``a``, ``a and b``, ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
