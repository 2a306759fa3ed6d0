"""Own times of named ranges under nesting, lanes and overlaps."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.profiling.ranges import NEGLIGIBLE_NS, TimeRange, listed, own_times

MS = 1_000_000


def ms(name: str, start: float, end: float, lane: str = "") -> TimeRange:
    return TimeRange(name, round(start * MS), round(end * MS), lane)


def own_ms(*ranges: TimeRange) -> dict[str, float]:
    return {name: own / MS for name, own in own_times(ranges).times.items()}


def test_a_parent_does_not_own_what_its_children_take() -> None:
    partition = own_times(
        [ms("prefill", 0, 100), ms("sam", 10, 40), ms("clip", 40, 60), ms("projector", 60, 65), ms("decode", 100, 107)]
    )
    assert {name: own / MS for name, own in partition.times.items()} == {
        "prefill": 45,
        "sam": 30,
        "clip": 20,
        "projector": 5,
        "decode": 7,
    }
    assert partition.notes == ("prefill contains sam, clip and projector: their time was taken out of it",)


def test_nesting_goes_as_deep_as_it_likes() -> None:
    partition = own_times([ms("a", 0, 10), ms("b", 1, 9), ms("c", 2, 8), ms("d", 3, 4)])
    assert {name: own / MS for name, own in partition.times.items()} == {"a": 2, "b": 2, "c": 5, "d": 1}
    assert partition.notes == tuple(
        f"{outer} contains {inner}: its time was taken out of it" for outer, inner in ("ab", "bc", "cd")
    )


def test_of_ranges_that_overlap_the_later_one_is_counted() -> None:
    partition = own_times([ms("sam", 0, 10), ms("clip", 6, 14)])
    assert partition.times == {"sam": 6 * MS, "clip": 8 * MS}
    assert partition.notes == ("sam and clip overlap, and neither contains the other: the later one is counted",)


def test_an_overlap_does_not_hide_what_contains_both() -> None:
    partition = own_times([ms("prefill", 0, 20), ms("sam", 0, 10), ms("clip", 6, 14)])
    assert partition.times == {"prefill": 6 * MS, "sam": 6 * MS, "clip": 8 * MS}
    assert partition.notes == (
        "prefill contains sam and clip: their time was taken out of it",
        "sam and clip overlap, and neither contains the other: the later one is counted",
    )


def test_of_ranges_that_start_together_the_shorter_is_the_inner_one() -> None:
    # As torch exports GPU annotations: both start with the first kernel.
    assert own_ms(ms("sam", 0, 4), ms("prefill", 0, 10)) == {"prefill": 6, "sam": 4}


def test_ranges_that_touch_or_differ_by_rounding_are_not_worth_a_note() -> None:
    assert own_times([ms("sam", 0, 5), ms("clip", 5, 9)]).notes == ()
    assert own_times([TimeRange("sam", 0, 5 * MS + NEGLIGIBLE_NS), ms("clip", 5, 9)]).notes == ()
    assert own_times([TimeRange("sam", 0, 5 * MS + NEGLIGIBLE_NS + 1), ms("clip", 5, 9)]).notes != ()


def test_an_annotation_on_several_streams_is_one_range() -> None:
    # Without merging, prefill's copy on the second stream starts after sam, and would take its time.
    partition = own_times([ms("prefill", 0, 100, "7"), ms("prefill", 10, 110, "8"), ms("sam", 0, 40, "7")])
    assert partition.times == {"prefill": 70 * MS, "sam": 40 * MS}
    assert [(owned.range.start, owned.range.end) for owned in partition.ranges if owned.range.name == "prefill"] == [
        (0, 110 * MS)
    ]
    assert partition.notes[0] == "prefill was recorded in up to 2 places at once (threads or streams): counted once"


def test_steps_on_two_streams_stay_apart() -> None:
    steps = [ms("decode", 0, 10, "7"), ms("decode", 2, 11, "8"), ms("decode", 10, 20, "7"), ms("decode", 12, 21, "8")]
    owned = own_times(steps).ranges
    assert [part.own / MS for part in owned] == [10, 11]


def test_steps_that_overlap_on_one_stream_stay_apart() -> None:
    assert [part.own / MS for part in own_times([ms("decode", 0, 10), ms("decode", 9, 20)]).ranges] == [9, 11]


def test_a_range_inside_one_of_the_same_name_is_part_of_it() -> None:
    owned = own_times([ms("decode", 0, 10), ms("decode", 2, 4), ms("decode", 5, 6)]).ranges
    assert [part.own / MS for part in owned] == [10]


def test_each_repeat_keeps_its_own_time() -> None:
    owned = own_times([ms("prefill", 0, 10), ms("sam", 2, 5), ms("prefill", 20, 26), ms("sam", 21, 22)]).ranges
    assert [(part.range.name, part.own / MS) for part in owned] == [
        ("prefill", 7),
        ("sam", 3),
        ("prefill", 5),
        ("sam", 1),
    ]


def test_gaps_are_nobodys() -> None:
    assert own_ms(ms("a", 0, 1), ms("b", 50, 51)) == {"a": 1, "b": 1}


def test_nothing_and_empty_ranges() -> None:
    assert own_times([]).times == {}
    assert own_times([TimeRange("a", 5, 5)]).times == {"a": 0}


def test_times_may_be_fractions_and_negative() -> None:
    assert own_times([TimeRange("a", -2.5, 1.5), TimeRange("b", -1.0, 0.0)]).times == {"a": 3.0, "b": 1.0}


def test_a_range_cannot_end_before_it_starts() -> None:
    with pytest.raises(ValueError, match="range 'sam' ends at 4, before it starts at 5"):
        TimeRange("sam", 5, 4)


def test_names_in_a_row() -> None:
    assert [listed("a"), listed("ab"), listed("abc")] == ["a", "a and b", "a, b and c"]


def union(ranges: list[TimeRange]) -> float:
    """Measure of the union of intervals, the slow and obvious way."""
    points = sorted({edge for part in ranges for edge in (part.start, part.end)})
    return sum(
        right - left
        for left, right in pairwise(points)
        if any(part.start <= left and right <= part.end for part in ranges)
    )


RANGES = st.lists(
    st.builds(
        lambda name, start, length, lane: TimeRange(name, start, start + length, lane),
        st.sampled_from("abc"),
        st.integers(-20, 40),
        st.integers(0, 30),
        st.sampled_from(["", "7", "8"]),
    ),
    max_size=12,
)


@given(RANGES)
def test_own_times_add_up_to_the_time_in_which_anything_ran(ranges: list[TimeRange]) -> None:
    assert sum(own_times(ranges).times.values()) == union(ranges)


@given(RANGES)
def test_nothing_owns_more_than_it_lasted(ranges: list[TimeRange]) -> None:
    partition = own_times(ranges)
    assert all(0 <= owned.own <= owned.range.end - owned.range.start for owned in partition.ranges)
    for name, own in partition.times.items():
        assert own <= union([part for part in ranges if part.name == name])


@given(RANGES, st.randoms())
def test_the_order_of_ranges_does_not_matter(ranges: list[TimeRange], chance: random.Random) -> None:
    shuffled = list(ranges)
    chance.shuffle(shuffled)
    assert own_times(shuffled) == own_times(ranges)


@given(RANGES, st.integers(-1000, 1000))
def test_where_the_clock_begins_does_not_matter(ranges: list[TimeRange], shift: int) -> None:
    moved = [TimeRange(part.name, part.start + shift, part.end + shift, part.lane) for part in ranges]
    assert own_times(moved).times == own_times(ranges).times


@given(RANGES)
def test_every_instant_belongs_to_what_started_last(ranges: list[TimeRange]) -> None:
    partition = own_times(ranges)
    merged = [owned.range for owned in partition.ranges]
    expected: dict[str, int] = dict.fromkeys((part.name for part in merged), 0)
    for instant in range(-20, 75):
        active = [part for part in merged if part.start <= instant < part.end]
        if active:
            innermost = max(active, key=lambda part: (part.start, -part.end, part.name))
            expected[innermost.name] += 1
    assert partition.times == expected


@pytest.mark.parametrize("shape", ["nested", "staggered"])
def test_work_grows_little_faster_than_the_number_of_ranges(shape: str) -> None:
    """Lines of Python that run, since seconds depend on what else the machine does."""

    def lines(count: int) -> int:
        if shape == "nested":
            ranges = [TimeRange(str(i % 7), i, 4 * count - i) for i in range(count)]
        else:
            ranges = [TimeRange(str(i % 7), i, i + count) for i in range(count)]
        seen = 0

        def trace(frame: FrameType, event: str, argument: object) -> object:
            nonlocal seen
            seen += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            own_times(ranges)
        finally:
            sys.settrace(before)
        return seen

    # Eight times as many ranges; a quadratic algorithm takes 64 times as many steps.
    assert lines(4_000) < 16 * lines(500)
