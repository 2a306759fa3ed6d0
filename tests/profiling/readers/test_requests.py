"""Ranges of stages become requests: membership, omissions, and the number of decode steps."""

from __future__ import annotations

import pytest

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.ranges import TimeRange
from stagemeter.profiling.readers.repeats import split_repeats

MS = 1_000_000
SILENT = "no vision stage has a range"


def ms(name: str, start: float, end: float, lane: str = "") -> TimeRange:
    return TimeRange(name, round(start * MS), round(end * MS), lane)


def request(at: float, decode: int = 3, vision_inside: bool = True) -> list[TimeRange]:
    """One request: 10 ms of vision, 20 of prefill, and 2 a decode step."""
    sam, clip, projector = ms("sam", at, at + 5), ms("clip", at + 5, at + 9), ms("projector", at + 9, at + 10)
    prefill = ms("prefill", at if vision_inside else at + 10, at + 30)
    steps = [ms("decode", at + 30 + 2 * step, at + 32 + 2 * step) for step in range(decode)]
    return [prefill, sam, clip, projector, *steps]


def split(*ranges: TimeRange, steps: int = 3) -> Profile:
    return split_repeats(ranges, steps, "trace.json", ("sam", "clip", "projector"))


EXPECTED = {"sam": 5, "clip": 4, "projector": 1, "prefill": 20, "decode": 2, "decode_total": 6}


@pytest.mark.parametrize("inside", [True, False])
def test_requests_follow_one_another(inside: bool) -> None:
    repeats = split(*request(0, vision_inside=inside), *request(100, vision_inside=inside))
    assert repeats.times_ms == {stage: (time, time) for stage, time in EXPECTED.items()}
    assert (repeats.request_ms, repeats.measured) == ((), {})
    inside_note = "prefill contains sam, clip and projector: their time was taken out of it"
    assert repeats.notes == ((inside_note,) if inside else ())


def test_vision_of_the_next_request_may_begin_while_this_one_decodes() -> None:
    early = [ms("sam", 31, 32), *request(0)[:1], *request(0)[4:], ms("prefill", 50, 60)]
    repeats = split(*early, *(ms("decode", 60 + step, 61 + step) for step in range(3)), ms("sam", -4, -2))
    assert repeats.times_ms["sam"] == (2, 1)


def test_request_ranges_tell_requests_apart_and_give_the_wall_time() -> None:
    chunked = [ms("prefill", 1, 11), ms("prefill", 12, 20), ms("decode", 20, 23), ms("request", 0, 24)]
    repeats = split(*chunked, ms("request", 30, 40), ms("prefill", 30, 38), ms("decode", 38, 40), steps=1)
    assert repeats.times_ms == {"prefill": (18, 8), "decode": (3, 2), "decode_total": (3, 2)}
    assert repeats.request_ms == (24, 10)


def test_what_lies_outside_of_every_request_is_left_out() -> None:
    repeats = split(ms("request", 0, 50), *request(0), ms("sam", 60, 61), ms("decode", 70, 72), ms("decode", 72, 74))
    assert repeats.times_ms == {stage: (time,) for stage, time in EXPECTED.items()}
    assert "ranges outside of every request range are left out: 1 of sam and 2 of decode" in repeats.notes


def test_decode_before_and_vision_after_all_are_left_out() -> None:
    repeats = split(ms("decode", -9, -8), *request(0), ms("sam", 60, 61))
    assert repeats.times_ms == {stage: (time,) for stage, time in EXPECTED.items()}
    assert "ranges before the first prefill are left out: 1 of decode" in repeats.notes
    assert "ranges after the last prefill are left out: 1 of sam" in repeats.notes


def test_a_request_that_the_profiler_saw_in_part_is_left_out() -> None:
    repeats = split(*request(0), ms("prefill", 100, 130))
    assert repeats.times_ms == {stage: (time,) for stage, time in EXPECTED.items()}
    assert "1 of 2 requests lack sam, clip, projector and decode_total and are left out" in repeats.notes


def test_requests_that_all_lack_something_keep_what_they_have() -> None:
    repeats = split(ms("sam", 0, 1), ms("prefill", 2, 3), ms("prefill", 10, 12), ms("decode", 12, 13), steps=1)
    assert repeats.times_ms == {"sam": (1,), "prefill": (1, 2), "decode": (1,), "decode_total": (1,)}
    assert "not every request has sam and decode_total: each stage has the repeats in which it was seen" in (
        repeats.notes
    )


def test_one_decode_range_is_taken_for_all_steps() -> None:
    repeats = split(*request(0, decode=1), steps=4)
    assert (repeats.times_ms["decode_total"], repeats.times_ms["decode"]) == ((2,), (0.5,))
    assert repeats.measured == {}
    assert "there is one decode range a request: it counts as all 4 decode steps of the workload" in repeats.notes


def test_another_number_of_decode_ranges_is_another_number_of_new_tokens() -> None:
    repeats = split(*request(0, decode=5), *request(100, decode=5), steps=511)
    assert (repeats.times_ms["decode_total"], repeats.times_ms["decode"]) == ((10, 10), (2, 2))
    assert repeats.measured == {"new_tokens": 6}
    assert any("5 decode ranges a request, not 511" in note for note in repeats.notes)


def test_requests_of_another_length_are_left_out_where_some_are_as_asked() -> None:
    repeats = split(*request(0, decode=5), *request(100), *request(200, decode=4))
    assert repeats.times_ms == {stage: (time,) for stage, time in EXPECTED.items()}
    assert repeats.measured == {}
    assert "2 of 3 requests took other than 3 decode steps and are left out" in repeats.notes


def test_requests_of_several_lengths_share_no_decode_total() -> None:
    repeats = split(*request(0, decode=5), *request(100, decode=4), steps=511)
    assert repeats.times_ms == {stage: (EXPECTED[stage],) * 2 for stage in EXPECTED if stage != "decode_total"}
    assert repeats.measured == {}
    assert any("requests took from 4 to 5 decode steps" in note for note in repeats.notes)


def test_a_range_of_all_steps_may_stand_alone_or_around_its_steps() -> None:
    loop = ms("decode_total", 30, 40)
    alone = split(*request(0, decode=0), loop, steps=4)
    assert (alone.times_ms["decode_total"], alone.times_ms["decode"]) == ((10,), (2.5,))
    around = split(*request(0), loop, steps=511)
    # The loop's own 4 ms belong to decoding, too.
    assert (around.times_ms["decode_total"], around.times_ms["decode"]) == ((10,), (pytest.approx(10 / 3),))
    assert around.measured == {"new_tokens": 4}
    assert not any("decode_total contains" in note for note in around.notes)


def test_one_decode_range_without_decode_steps_is_refused() -> None:
    with pytest.raises(StagemeterError, match=r"trace\.json: it has decode times, but a request of one new token"):
        split(*request(0, decode=1), steps=0)
    assert split(*request(0, decode=2), steps=0).measured == {"new_tokens": 3}


def test_requests_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(StagemeterError, match="2 ranges of sam but none of prefill"):
        split(ms("sam", 0, 1), ms("sam", 2, 3))
    single = split(ms("sam", 0, 1), ms("decode", 2, 3), ms("decode", 3, 5), ms("decode", 5, 6))
    assert single.times_ms == {"sam": (1,), "decode": (pytest.approx(4 / 3),), "decode_total": (4,)}


def test_vision_stands_where_its_parts_are_not_all_timed() -> None:
    repeats = split(ms("vision", 0, 10), ms("sam", 2, 6), ms("prefill", 10, 20))
    assert repeats.times_ms == {"prefill": (10,), "vision": (10,)}
    assert repeats.notes == ("sam is counted as part of vision, since not all of its parts are timed by themselves",)


def test_parts_stand_where_all_are_timed_and_the_rest_is_nobodys() -> None:
    repeats = split(ms("vision", 0, 12), *request(0))
    assert repeats.times_ms == {**{stage: (time,) for stage, time in EXPECTED.items()}, "prefill": (18,)}
    assert "vision is left out, since its parts are timed by themselves" in repeats.notes
    assert "2 ms of vision, over all requests, lie outside of its parts and are in no stage" in repeats.notes


def test_forward_stands_without_prefill_and_takes_in_vision() -> None:
    repeats = split(ms("sam", 0, 3), ms("forward", 3, 10), ms("clip", 4, 5), ms("forward", 20, 25), ms("sam", 20, 21))
    assert repeats.times_ms == {"forward": (10, 5)}


def test_forward_around_every_pass_is_no_stage_beside_prefill() -> None:
    passes = [ms("forward", 0, 30), *(ms("forward", 30 + 2 * step, 31 + 2 * step) for step in range(3))]
    assert split(*request(0), *passes).times_ms == {stage: (time,) for stage, time in EXPECTED.items()}


def test_a_prefill_without_vision_is_spoken_of() -> None:
    assert any(note.startswith(SILENT) for note in split(ms("prefill", 0, 1)).notes)
    assert not any(note.startswith(SILENT) for note in split(ms("forward", 0, 1)).notes)


def test_a_stage_that_others_cover_has_no_time() -> None:
    repeats = split(ms("prefill", 0, 5), ms("sam", 0, 5))
    assert repeats.times_ms == {"sam": (5,)}
    assert "prefill had no time of its own in some request, and has none here" in repeats.notes


def test_the_times_of_a_request_add_up_to_less_than_its_wall_time() -> None:
    repeats = split(ms("request", 0, 40), *request(1), ms("request", 50, 90), *request(52))
    parts = [sum(times) for times in zip(*(v for k, v in repeats.times_ms.items() if k != "decode"), strict=True)]
    assert parts == [36, 36]
    assert all(part <= wall for part, wall in zip(parts, repeats.request_ms, strict=True))


def test_overlapping_requests_are_spoken_of() -> None:
    repeats = split(
        ms("request", 0, 10),
        ms("request", 8, 20),
        ms("prefill", 1, 4),
        ms("prefill", 9, 12),
        ms("sam", 1, 2),
        ms("sam", 9, 10),
    )
    assert repeats.times_ms == {"sam": (1, 1), "prefill": (2, 2)}
    assert any(note.startswith("requests overlap in time") for note in repeats.notes)
