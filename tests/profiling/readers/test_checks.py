"""Every reader keeps exact decimals, and refuses an impossible time with its row."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages_of_deepseek import read_profile

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.profile import LONGEST_MS, Profile

#: Microseconds of a century and a second, in the unit of traces.
TOO_LONG = round(LONGEST_MS * 1e3) + 10**6
SUMMARY = "Total Time (ns),Instances,Range\n"


def read(folder: Path, text: str, name: str = "times.dat", steps: int = 3) -> Profile:
    path = folder / name
    path.write_text(text)
    return read_profile(path, steps=steps)


def event(name: str, start: str, duration: str) -> str:
    place = '"cat": "user_annotation", "pid": 1, "tid": 1'
    return f'{{"ph": "X", {place}, "name": "{name}", "ts": {start}, "dur": {duration}}}'


def trace(*events: str) -> str:
    return f'{{"traceEvents": [{", ".join(events)}]}}'


def microseconds(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"


@settings(deadline=None, max_examples=40)
@given(
    # From a clock that starts with the process to a day far in the future.
    start=st.integers(0, 4_000_000_000_000_000_000),
    durations=st.lists(st.integers(1, 10**10), min_size=5, max_size=5),
    zeros=st.integers(0, 30),
)
def test_absolute_nanoseconds_are_kept(tmp_path_factory, start, durations, zeros):
    """kineto writes microseconds with three decimals, some versions since 1970: pull requests 890 and 919."""
    events, at = [], start
    for name, duration in zip(("sam", "clip", "projector", "prefill", "decode"), durations, strict=True):
        events.append(event(name, microseconds(at) + "0" * zeros, microseconds(duration) + "0" * zeros))
        at += duration
    times = read(tmp_path_factory.mktemp("trace"), trace(*events), steps=1).times_ms
    assert [times[name][0] for name in ("sam", "clip", "projector", "prefill", "decode")] == [
        duration / 1e6 for duration in durations
    ]


def test_finer_than_a_nanosecond_adjoins_all_the_same(tmp_path):
    """Scopes of 1000.5 ns: rounding each duration would lose or gain half a nanosecond a scope."""
    scopes = [
        ("prefill", "0.5", "1.0005"),
        *(("decode", f"{1.5005 + 1.0005 * step:.4f}", "1.0005") for step in range(1000)),
    ]
    times = read(tmp_path, trace(*(event(*scope) for scope in scopes)), steps=1000).times_ms
    assert times["decode_total"][0] == pytest.approx(1000.5e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("unit", "factor"), [("ns", 1e6), ("nsec", 1e6), ("usec", 1e3), ("μs", 1e3), ("ms", 1), ("sec", 1e-3)]
)
def test_units_of_a_summary(tmp_path, unit, factor):
    profile = read(tmp_path, f"Total Time ({unit}),Instances,Range\n{5.126 * factor:.9f},2,:prefill\n")
    assert profile.times_ms["prefill"] == (2.563,)


def test_decimals_of_a_summary_are_not_rounded_on_the_way(tmp_path):
    profile = read(tmp_path, f'{SUMMARY}"1,000,000,000,000,000,000.3",3,:prefill\n3,3,dom:prefill\n0,9,:marker\n')
    assert profile.times_ms["prefill"] == (float(Fraction("1000000000000.0000033") / 6),)


def test_rows_of_no_stage_may_have_taken_no_time(tmp_path):
    rows = "8000000,2,:prefill\n0,3,:step_marker\n0.0,0,:never\n"
    profile = read(tmp_path, SUMMARY + rows)
    assert profile.times_ms == {"prefill": (4.0,)}
    assert any(":step_marker (1 x)" in note for note in profile.notes)
    projected = "Range,Total Proj Time (ns),Range Instances\n:marker,0,5\n:prefill,6000000,2\n"
    assert read(tmp_path, projected).times_ms == {"prefill": (3.0,)}
    events = [event("prefill", "0", "10"), event("step_marker", "2", "0"), event("other", "5", "-1")]
    assert read(tmp_path, trace(*events)).times_ms == {"prefill": (0.01,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (trace(event("sam", "0", "5"), event("prefill", start, duration)), f"event 2.*{part}")
            for start, duration, part in (
                ("0", "-1", "a range from 0 to -1000 is no time"),
                ("0", '"nan"', "is no trace event"),
                ("0", '"inf"', "is no trace event"),
                ("1e400", "1", "is no trace event"),
                ("0", "1e999999999", "is no trace event"),
                ("true", "1", "is no trace event"),
                ("0", str(TOO_LONG), "is no time"),
                ("-1e16", "2e16", "is no time"),
            )
        ),
        *(
            (SUMMARY + f"1,1,:sam\n{row},:prefill\n", f"line 3: {part}")
            for row, part in (
                ("0,3", "0 ms in 3 ranges of prefill is no time"),
                ("5,0", "0.000005 ms in 0 ranges of prefill is no time"),
                ("nan,3", "Total Time is 'nan', which is no number"),
                ("inf,3", "Total Time is 'inf', which is no number"),
                ("-4,3", "Total Time is '-4', which is out of range"),
                ("1e999999999,3", "Total Time is '1e999999999', which is no number"),
                (f"{1000 * TOO_LONG},1", "mean of :prefill: .* more than a century"),
                ("5,1.5", "Instances is '1.5', which is no number of ranges"),
                ("5,1e999999", "Instances is '1e999999', which is no number"),
                ("5,inf", "Instances is 'inf', which is no number"),
                ('"1,5",1', "Total Time is '1,5', which is no number"),
                ("1_000,1", "Total Time is '1_000', which is no number"),
            )
        ),
        (
            "Total Time (ns),Instances,Range,Total Time (ms)\n5,1,:prefill,9\n",
            "line 1: the header has 'Total Time' more",
        ),
        *(
            (f"stage,time_ms\nsam,1\nprefill,{value}\n", f"line 3: prefill: .*{part}")
            for value, part in (
                ("nan", "is no time"),
                ("-inf", "is no time"),
                ("-1", "is no time"),
                ("0", "is no time"),
                ("1e-400", "is no time"),
                ("1e400", "more than a century"),
                ("3.2e12", "more than a century"),
                ('"1,5"', "is no number"),
                ("1_000", "is no number"),
            )
        ),
        ("stage,time_ms,time_ms\nprefill,1,2\n", "line 1: the header has 'time_ms' more than once"),
        ("stage, stage,time_ms\nprefill,sam,2\n", "line 1: the header has 'stage' more than once"),
        *(
            (f'{{"sam": 1, "prefill": [2, {value}]}}', rf"prefill\[1\]: .*{part}")
            for value, part in (("1e999", "is no time"), ("-3", "is no time"), ("4e12", "century"))
        ),
        ('[{"stage": "prefill", "time_ms": 4e12}]', r"\[0\]: prefill: .* more than a century"),
        (
            '{"source": "x", "clock": "y", "times_ms": {"prefill": [1]}, "request_ms": [0]}',
            r"request_ms\[0\]: 0 ms is no time",
        ),
        (
            '{"source": "x", "clock": "y", "times_ms": {"prefill": [1]}, "metrics": {"engine/seconds": 1e999}}',
            "metrics: ",
        ),
    ],
)
def test_impossible_times_are_refused_in_one_line_that_names_the_row(tmp_path, text, message):
    with pytest.raises(StagemeterError, match=message) as caught:
        read(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    assert str(caught.value).startswith(str(tmp_path / "times.dat"))


@pytest.mark.parametrize("bounds", [(0, 4e21), (0, 9e999), ("a", "b"), (b"a", 5), (5, -5)])
def test_impossible_ranges_of_an_export_are_refused(tmp_path, bounds):
    path = tmp_path / "report.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE NVTX_EVENTS (start, end, eventType, text, globalTid)")
        database.execute("INSERT INTO NVTX_EVENTS VALUES (0, 1000, 59, 'sam', 1)")
        database.execute("INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, 'prefill', 1)", bounds)
    with pytest.raises(StagemeterError, match=r"NVTX range 2, 'prefill': a range from .* is no time"):
        read_profile(path, steps=3)


def test_impossible_work_of_a_gpu_is_refused(tmp_path):
    path = tmp_path / "report.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE NVTX_EVENTS (start, end, eventType, text, globalTid)")
        database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start, globalTid, correlationId)")
        database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start, end, correlationId)")
        database.execute("INSERT INTO NVTX_EVENTS VALUES (0, 1000, 59, 'prefill', 1)")
        database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (10, 1, 7)")
        database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (900, 20, 7)")
    with pytest.raises(StagemeterError, match=r"GPU work of NVTX range 1: a range from 900 to 20 is no time"):
        read_profile(path, steps=3)


def test_just_below_a_century_is_a_time(tmp_path):
    assert read(tmp_path, json.dumps({"prefill": LONGEST_MS})).times_ms == {"prefill": (LONGEST_MS,)}
