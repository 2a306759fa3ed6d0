"""Summaries as ``nsys stats --format csv`` prints them."""

from pathlib import Path

import pytest
from pages_of_deepseek import NameMapping, read_profile

from stagemeter.core.errors import StagemeterError

#: Ten requests of 4 new tokens; nanoseconds. The layout is that of ``nsys stats --report nvtx_pushpop_sum``.
PUSH_POP = """\
Processing [report.sqlite] with [nvtx_pushpop_sum.py]...

 ** NVTX Push/Pop Range Summary (nvtx_pushpop_sum):

Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Range
50.0,500000000,10,50000000.0,50000000.0,49000000,51000000,100000.0,:prefill
20.0,240000000,30,8000000.0,8000000.0,7900000,8100000,10000.0,:decode
10.0,100000000,10,10000000.0,10000000.0,9900000,10100000,10000.0,:sam
5.0,50000000,10,5000000.0,5000000.0,4900000,5100000,10000.0,:clip
1.0,1000000,10,100000.0,100000.0,99000,101000,1000.0,:projector
"""
#: The same on the GPU: the prefill is on level 0 and has three children, the vision stages are on level 1.
PROJECTED = """\
Range,Style,Total Proj Time (ns),Total Range Time (ns),Range Instances,Proj Avg (ns),Proj Med (ns),Proj Min (ns),\
Proj Max (ns),Proj StdDev (ns),Total GPU Ops,Avg GPU Ops,Avg Range Lvl,Avg Num Child
:prefill,PushPop,400000000,500000000,10,40000000.0,40000000.0,1,1,0.0,9,0.9,0.0,3.0
:decode,PushPop,210000000,240000000,30,7000000.0,7000000.0,1,1,0.0,9,0.9,0.0,0.0
:sam,PushPop,90000000,100000000,10,9000000.0,9000000.0,1,1,0.0,9,0.9,1.0,0.0
:clip,PushPop,40000000,50000000,10,4000000.0,4000000.0,1,1,0.0,9,0.9,1.0,0.0
:projector,PushPop,900000,1000000,10,90000.0,90000.0,1,1,0.0,9,0.9,1.0,0.0
"""


def read(tmp_path: Path, text: str, steps: int = 3, **options):
    path = tmp_path / "summary.csv"
    path.write_text(text)
    return read_profile(path, steps=steps, **options)


def test_sums_become_means_over_the_requests(tmp_path):
    profile = read(tmp_path, PUSH_POP)
    assert profile.times_ms == {
        "sam": (10.0,),
        "clip": (5.0,),
        "projector": (pytest.approx(0.1),),
        "prefill": (50.0,),
        "decode": (8.0,),
        "decode_total": (24.0,),
    }
    assert profile.measured == {}
    assert "CPU ranges" in profile.clock
    assert any("means over 10 requests" in note for note in profile.notes)
    # Whether the one contains the others cannot be seen, and that is said.
    assert any("prefill_contains_vision" in note and "as they stand" in note for note in profile.notes)


def test_what_is_told_about_nesting_is_believed(tmp_path):
    inside = read(tmp_path, PUSH_POP, prefill_contains_vision=True)
    assert inside.times_ms["prefill"] == (pytest.approx(50 - 10 - 5 - 0.1),)
    assert any("their time was taken out of it" in note for note in inside.notes)
    beside = read(tmp_path, PUSH_POP, prefill_contains_vision=False)
    assert beside.times_ms["prefill"] == (50.0,)


def test_depths_show_the_nesting(tmp_path):
    profile = read(tmp_path, PROJECTED)
    assert "GPU ranges" in profile.clock
    assert profile.times_ms["sam"] == (9.0,)
    assert profile.times_ms["prefill"] == (pytest.approx(40 - 9 - 4 - 0.09),)
    assert any("as depths of ranges show" in note for note in profile.notes)
    flat = PROJECTED.replace("0.9,1.0,0.0", "0.9,0.0,0.0").replace("0.9,0.0,3.0", "0.9,0.0,0.0")
    assert read(tmp_path, flat).times_ms["prefill"] == (40.0,)


def test_gpu_times_are_preferred_where_both_are_printed(tmp_path):
    both = read(tmp_path, f"{PUSH_POP}\n{PROJECTED}")
    assert both.times_ms["sam"] == (9.0,)
    assert "GPU ranges" in both.clock


def test_other_units_and_names(tmp_path):
    text = PUSH_POP.replace("Total Time (ns)", "Total Time (ms)").replace(":prefill", "dom:llm first pass")
    text = text.replace("500000000", "500").replace("240000000", "240")
    text = "\n".join(line for line in text.splitlines() if ":sam" not in line and ":clip" not in line) + "\n"
    text = text.replace("1000000,10,100000.0", "1,10,0.1")
    profile = read(tmp_path, text, mapping=NameMapping({"prefill": ["*first pass"]}))
    assert profile.times_ms["prefill"] == (50.0,)
    assert profile.times_ms["projector"] == (pytest.approx(0.1),)


def test_number_of_decode_ranges_tells_the_new_tokens(tmp_path):
    profile = read(tmp_path, PUSH_POP, steps=511)
    assert profile.measured == {"new_tokens": 4}
    assert any("not 511" in note for note in profile.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PUSH_POP.splitlines()[4] + "\n", "no ranges below"),
        (PUSH_POP.replace("24.0", "24.0").replace(",:sam", ""), "has 8 columns and its header 9"),
        (PUSH_POP.replace("100000000", "fast"), "'fast', which is no number"),
        (PUSH_POP.replace("100000000", "-1"), "line 8: Total Time is '-1', which is out of range"),
        (PUSH_POP.replace("(ns)", "(fortnights)"), "'fortnights'"),
        (PUSH_POP.replace(":", ":my_"), "no range has the name of a stage"),
        (
            "\n".join(line for line in PUSH_POP.splitlines() if "prefill" not in line),
            "10 ranges of sam but none of prefill",
        ),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(StagemeterError, match=message):
        read(tmp_path, text)


def test_more_vision_than_prefill_is_no_nesting(tmp_path):
    with pytest.raises(StagemeterError, match="did not run inside of it"):
        read(tmp_path, PUSH_POP.replace("500000000", "50000000"), prefill_contains_vision=True)
