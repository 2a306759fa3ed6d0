"""Chrome traces that torch writes on the CPU, and GPU annotations in the form of kineto."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages_of_deepseek import NameMapping, read_profile
from traced_requests import PEAK_MEMORY, REQUESTS, STEPS

from stagemeter.core.errors import StagemeterError


def event(name: str, start: float, duration: float, **fields: Any) -> dict[str, Any]:
    """A complete event in microseconds, as ``handleActivity`` in kineto's ``output_json.cpp`` prints it."""
    basis = {"ph": "X", "cat": "user_annotation", "name": name, "pid": 100, "tid": 100, "ts": start, "dur": duration}
    return basis | fields


def gpu(name: str, start: float, duration: float, number: int | None = None, stream: int = 7) -> dict[str, Any]:
    """A GPU annotation: device and stream in place of process and thread, widened by a nanosecond at both ends."""
    arguments = {} if number is None else {"args": {"External id": number}}
    return event(name, start - 0.001, duration + 0.002, cat="gpu_user_annotation", pid=0, tid=stream, **arguments)


def kernel(start: float, duration: float) -> dict[str, Any]:
    return event("gemm", start, duration, cat="kernel", pid=0, tid=7)


def write(path: Path, events: list[dict[str, Any]], **fields: Any) -> Path:
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events, "traceName": "t", **fields}))
    return path


def request(at: float = 0) -> list[dict[str, Any]]:
    return [
        event("prefill", at, 100),
        event("sam", at + 10, 30),
        *(event("decode", at + 100 + 10 * step, 10) for step in range(STEPS)),
    ]


def test_a_trace_of_torch_is_read_to_the_nanosecond(torch_trace: Path, torch_events: list[dict[str, Any]]) -> None:
    profile = read_profile(torch_trace, steps=STEPS)

    def durations(name: str) -> list[float]:
        return [event["dur"] / 1000 for event in torch_events if event["name"] == name]

    for stage in ("sam", "clip", "projector"):
        assert profile.times_ms[stage] == pytest.approx(durations(stage), abs=1e-9)
    prefill = [
        whole - sum(inner)
        for whole, *inner in zip(*map(durations, ("prefill", "sam", "clip", "projector")), strict=True)
    ]
    assert profile.times_ms["prefill"] == pytest.approx(prefill, abs=1e-9)
    totals = [sum(durations("decode")[first : first + STEPS]) for first in range(0, REQUESTS * STEPS, STEPS)]
    assert profile.times_ms["decode_total"] == pytest.approx(totals, abs=1e-9)
    assert profile.times_ms["decode"] == pytest.approx([total / STEPS for total in totals], abs=1e-9)
    assert profile.request_ms == pytest.approx(durations("request"), abs=1e-9)
    assert (profile.clock, profile.measured) == ("CPU scopes (user_annotation)", {})
    assert profile.source == "torch trace of trace.json"
    assert profile.notes == (
        "prefill contains sam, clip and projector: their time was taken out of it",
        f"names that stand for no stage: layers ({REQUESTS} x)",
    )


def test_forms_of_the_same_trace(torch_trace: Path, compressed: Path, tmp_path: Path) -> None:
    expected = read_profile(torch_trace, steps=STEPS).times_ms
    content = json.loads(torch_trace.read_text())
    events = content.pop("traceEvents")
    forms = {
        "bare.json": json.dumps(events),
        "line.json": json.dumps({"traceEvents": events, **content}),
        "last.json": json.dumps({**content, "traceEvents": events}),
        "indented.json": json.dumps({**content, "traceEvents": events, "end": {"traceEvents": [1]}}, indent=4),
        "bare.txt": "\n \ufeff".strip(" \n") + json.dumps(events, indent=1),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_profile(tmp_path / name, steps=STEPS).times_ms == expected, name
    assert read_profile(compressed, steps=STEPS).times_ms == expected
    # What it is shows in the content, not in the name.
    renamed = compressed.rename(tmp_path / "trace.sqlite")
    assert read_profile(renamed, steps=STEPS).times_ms == expected


def test_gpu_ranges_win_over_cpu_scopes(tmp_path: Path) -> None:
    events = [
        event("prefill", 0, 20, args={"External id": 1}),
        event("sam", 1, 5, args={"External id": 2}),
        *(event("decode", 20 + 2 * step, 2, args={"External id": 3 + step}) for step in range(STEPS)),
        gpu("prefill", 10, 1000, 1),
        gpu("sam", 10, 400, 2),
        *(gpu("decode", 1010 + 50 * step, 50, 3 + step) for step in range(STEPS)),
        kernel(10, 400),
    ]
    properties = [{"id": 0, "name": "NVIDIA H100 80GB HBM3", "totalGlobalMem": 1}]
    profile = read_profile(write(tmp_path / "t.json", events, deviceProperties=properties), steps=STEPS)
    assert profile.clock == "GPU ranges (gpu_user_annotation)"
    # kineto's widening is part of what is read: 2 ns a range.
    assert profile.times_ms["sam"] == pytest.approx([0.4], abs=1e-5)
    assert profile.times_ms["prefill"] == pytest.approx([0.6], abs=1e-5)
    assert profile.times_ms["decode_total"] == pytest.approx([0.15], abs=1e-5)
    assert profile.hardware == {"device": "NVIDIA H100 80GB HBM3"}
    assert profile.notes == ("prefill contains sam: its time was taken out of it",)


def test_devices_are_named_where_the_trace_lists_them_first(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    devices = [{"id": number, "name": "NVIDIA H100 80GB HBM3"} for number in range(2)]
    path.write_text(json.dumps({"deviceProperties": devices, "traceEvents": [gpu("prefill", 0, 9, 1)] * 9000}))
    assert read_profile(path, steps=STEPS).hardware == {"device": "NVIDIA H100 80GB HBM3"}


def test_copies_of_an_annotation_on_several_streams_are_one(tmp_path: Path) -> None:
    steps = [gpu("decode", 100 + 20 * step, 18, 10 + step) for step in range(STEPS)]
    # The second stream's copy of each step reaches into the next one.
    copies = [gpu("decode", 105 + 20 * step, 20, 10 + step, stream=8) for step in range(STEPS)]
    events = [gpu("prefill", 0, 60, 1), gpu("prefill", 20, 75, 1, stream=8), gpu("sam", 0, 30, 2), *steps, *copies]
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS)
    assert profile.measured == {}
    assert profile.times_ms["prefill"] == pytest.approx([0.065], abs=1e-5)
    assert profile.times_ms["sam"] == pytest.approx([0.030], abs=1e-5)
    assert profile.times_ms["decode_total"] == pytest.approx([0.065], abs=1e-5)


def test_copies_without_a_number_are_told_by_their_overlap(tmp_path: Path) -> None:
    events = [gpu("prefill", 0, 60), gpu("prefill", 20, 75, stream=8), gpu("sam", 0, 30)]
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS)
    assert profile.times_ms["prefill"] == pytest.approx([0.065], abs=1e-5)
    assert any("prefill was recorded in up to 2 places at once" in note for note in profile.notes)


def test_a_stage_without_gpu_ranges_is_left_out(tmp_path: Path) -> None:
    events = [*request(), gpu("prefill", 0, 90, 1), kernel(0, 90)]
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS)
    assert profile.times_ms == {"prefill": pytest.approx((0.09,), abs=1e-5)}
    assert any(note.startswith("sam has CPU scopes but no GPU range") for note in profile.notes)
    assert any(note.startswith("decode has CPU scopes but no GPU range") for note in profile.notes)


def test_clocks_are_never_mixed(tmp_path: Path) -> None:
    events = [*request(), gpu("sam", 12, 500, 1), kernel(12, 500)]
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS)
    assert profile.clock == "CPU scopes (user_annotation)"
    assert profile.times_ms["sam"] == (0.03,)
    assert any("prefill and decode have CPU scopes alone, so those are taken for all" in note for note in profile.notes)


def test_a_range_around_every_pass_does_not_decide_on_the_clock(tmp_path: Path) -> None:
    events = [event("prefill", 0, 9), event("forward", 1, 2), gpu("prefill", 0, 90, 1), kernel(0, 90)]
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS)
    assert profile.times_ms == {"prefill": pytest.approx((0.09,), abs=1e-5)}


@pytest.mark.parametrize("digits", [str(2**64 - 1), "9" * 5000], ids=["64 bits", "5000 digits"])
def test_arguments_may_hold_numbers_of_any_length(tmp_path: Path, digits: str) -> None:
    limit = sys.get_int_max_str_digits()
    text = json.dumps({"traceEvents": [*request(), event("nccl", 0, 1, cat="kernel", args={"Comms Id": "ID"})]})
    (tmp_path / "t.json").write_text(text.replace('"ID"', digits))
    assert read_profile(tmp_path / "t.json", steps=STEPS).times_ms["sam"] == (0.03,)
    assert sys.get_int_max_str_digits() == limit


@pytest.mark.parametrize("category", ["kernel", "gpu_memcpy", "gpu_memset"])
def test_cpu_scopes_beside_gpu_work_come_with_a_warning(tmp_path: Path, category: str) -> None:
    events = [*request(), kernel(1, 2) | {"cat": category}]
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS)
    assert any("a CPU scope may end before the work that it launched" in note for note in profile.notes)
    quiet = read_profile(write(tmp_path / "t.json", request()), steps=STEPS)
    assert not any("a CPU scope may end" in note for note in quiet.notes)


def test_fewer_gpu_ranges_than_scopes_are_spoken_of(tmp_path: Path) -> None:
    events = [*request(0), *request(1000), gpu("prefill", 0, 9, 1), gpu("sam", 0, 5, 2), gpu("decode", 9, 1, 3)]
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS)
    assert "decode has 6 CPU scopes but 1 GPU ranges, which are taken" in profile.notes


def test_scopes_of_other_tools(tmp_path: Path) -> None:
    for fields in ({"cat": "nvtx"}, {"cat": ""}):
        events = [scope | fields for scope in request()]
        assert read_profile(write(tmp_path / "t.json", events), steps=STEPS).times_ms["sam"] == (0.03,)
    plain = [{key: value for key, value in scope.items() if key != "cat"} for scope in request()]
    assert read_profile(write(tmp_path / "t.json", plain), steps=STEPS).times_ms["sam"] == (0.03,)


def test_operators_that_are_named_like_a_stage_are_none(tmp_path: Path) -> None:
    events = [*request(), event("sam", 200, 50, cat="cpu_op"), event("sam", 300, 50, cat="python_function")]
    assert read_profile(write(tmp_path / "t.json", events), steps=STEPS).times_ms["sam"] == (0.03,)


def test_names_are_mapped(tmp_path: Path) -> None:
    events = [
        event("ProfilerStep#1", 0, 200),
        event("execute_context_1(913)", 0, 100),
        event("vit.sam", 10, 30),
        *(event(f"execute_generation_{step}", 100 + step, 1) for step in range(STEPS)),
    ]
    mapping = NameMapping(
        {
            "request": ["ProfilerStep#*"],
            "prefill": ["execute_context*"],
            "decode": ["execute_gen*"],
            "sam": ["*.sam"],
            "clip": ["none"],
        }
    )
    profile = read_profile(write(tmp_path / "t.json", events), steps=STEPS, mapping=mapping)
    assert profile.times_ms == {"sam": (0.03,), "prefill": (0.07,), "decode": (0.001,), "decode_total": (0.003,)}
    assert profile.request_ms == (0.2,)
    assert "the pattern 'none' for clip matches nothing" in profile.notes


def test_a_trace_without_ranges_of_stages_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(
        StagemeterError,
        match=r"no range has the name of a stage; there are Prefill. Map them, such as --map prefill=Prefill",
    ):
        read_profile(write(tmp_path / "t.json", [event("Prefill", 0, 1)]), steps=STEPS)
    with pytest.raises(StagemeterError, match=r"none of the 1 events is a user annotation\. Put record_function"):
        read_profile(write(tmp_path / "t.json", [kernel(0, 1)]), steps=STEPS)
    with pytest.raises(StagemeterError, match="but 1 begin and end in two events"):
        read_profile(write(tmp_path / "t.json", [event("sam", 0, 1) | {"ph": "B"}]), steps=STEPS)
    with pytest.raises(StagemeterError, match=r"t\.json: the trace has no events"):
        read_profile(write(tmp_path / "t.json", []), steps=STEPS)


@pytest.mark.parametrize(
    "broken",
    [
        {"ts": "soon"},
        {"dur": -1},
        {"dur": None},
        {"ts": None},
        {"name": None},
        {"name": ["sam"]},
        {"args": 3, "cat": "gpu_user_annotation"},
        {"cat": ["user_annotation"]},
    ],
)
def test_an_event_that_is_none_is_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    events = [event("prefill", 0, 9), event("sam", 1, 1) | broken]
    with pytest.raises(
        StagemeterError,
        match=r"t\.json: (event 2(, 'sam': a range from 1000 to 0| is no trace event)|the file is not JSON)",
    ):
        read_profile(write(tmp_path / "t.json", events), steps=STEPS)


@pytest.mark.parametrize("odd", [3, "sam", None, [1]])
def test_a_list_of_other_things_is_no_trace(tmp_path: Path, odd: object) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": [odd]}))
    with pytest.raises(StagemeterError):
        read_profile(path, steps=STEPS)


@pytest.mark.parametrize("end", ["12.", "-", "1e", '{"ph": "X", "ts": 4.'])
def test_a_trace_that_was_cut_off_in_a_number_is_refused_as_such(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"traceEvents": [{"ph": "X", "name": "a", "ts": 1, "dur": 2}, ' + end)
    with pytest.raises(StagemeterError, match="the JSON ends in the middle"):
        read_profile(path, steps=1)


def test_a_number_that_is_none_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"traceEvents": [{"ph": "X", "name": "a", "ts": 1., "dur": 2}]' + " " * 200_000 + "}")
    with pytest.raises(StagemeterError, match="is not JSON"):
        read_profile(path, steps=1)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_trace_that_was_cut_off_is_refused(torch_trace: Path, tmp_path: Path, share: float) -> None:
    content = torch_trace.read_bytes().rstrip()
    path = tmp_path / "t.json"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StagemeterError, match=r"t\.json: the JSON ends in the middle. Profile it again"):
        read_profile(path, steps=STEPS)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_compressed_trace_that_was_cut_off_is_refused(compressed: Path, share: float) -> None:
    content = compressed.read_bytes()
    compressed.write_bytes(content[: max(3, int(share * len(content)))])
    with pytest.raises(StagemeterError, match=r"trace\.json\.gz: the compressed data end in the middle"):
        read_profile(compressed, steps=STEPS)


def test_damaged_compression_is_refused(compressed: Path) -> None:
    content = bytearray(compressed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    compressed.write_bytes(content)
    with pytest.raises(
        StagemeterError, match=r"trace\.json\.gz: (the compressed data are damaged|the file is not JSON)"
    ):
        read_profile(compressed, steps=STEPS)


@pytest.mark.parametrize(
    "text", ['{"traceEvents": [{"ph": "X",,}]}', '{"traceEvents": [{"ph": NaN}]}', '{"traceEvents": []} x']
)
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(StagemeterError, match=r"t\.json: the file is not JSON"):
        read_profile(path, steps=STEPS)


def test_bytes_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(b'{"traceEvents": [{"name": "\xff"}]}')
    with pytest.raises(StagemeterError, match=r"t\.json: the file is not JSON"):
        read_profile(path, steps=STEPS)


PEAK = f"""
import json, sys
from pathlib import Path
from stagemeter.profiling.readers import NameMapping, read_profile
profile = read_profile(Path(sys.argv[1]), steps=int(sys.argv[2]), mapping=NameMapping(["sam", "clip", "projector"]))
print(json.dumps([{PEAK_MEMORY}, len(profile.times_ms["sam"])]))
"""


def repeat_to(torch_trace: Path, path: Path, size: int, compress: bool = False) -> int:
    """Write a trace of at least `size` bytes from the events of another, one request after the other."""
    content = json.loads(torch_trace.read_text())
    events = content.pop("traceEvents")
    last = max(event["ts"] + event.get("dur", 0) for event in events)
    span = last - min(event["ts"] for event in events if event["ph"] == "X")
    repeats = -(-size // len(json.dumps(events)))
    with gzip.open(path, "wt", compresslevel=1) if compress else path.open("w") as file:
        file.write(json.dumps(content)[:-1] + ', "traceEvents": [')
        for repeat in range(repeats):
            moved = ({**event, "ts": event["ts"] + repeat * span} for event in events)
            file.write((", " if repeat else "") + json.dumps(list(moved))[1:-1])
        file.write("]}")
    return repeats


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("compress", [False, True])
def test_memory_does_not_grow_with_the_trace(torch_trace: Path, tmp_path: Path, compress: bool) -> None:
    peaks = {}
    for size in (2**20, 2**25):
        path = tmp_path / f"{size}.json"
        repeats = repeat_to(torch_trace, path, size, compress)
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(path), str(STEPS)], capture_output=True, text=True, check=True
        )
        peaks[size], found = json.loads(run.stdout)
        assert found == repeats * REQUESTS
    # The ranges of stages are kept, and nothing else.
    assert peaks[2**25] - peaks[2**20] < 2**25 / 4
