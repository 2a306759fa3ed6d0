"""Tables of times: JSON and CSV."""

import json
from pathlib import Path

import pytest
from pages_of_deepseek import NameMapping, read_profile

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths
from stagemeter.profiling.profile import Profile

LENGTHS = RequestLengths(
    Histogram(300, (Bucket(1, 100, 1), Bucket(101, None, 1))),
    Histogram(20, (Bucket(1, None, 2),)),
    Histogram(250, (Bucket(0, None, 2),)),
    "vllm:prefix_cache_hits_total",
)


def read(tmp_path: Path, text: str, steps: int = 3, **options):
    path = tmp_path / "times.dat"
    path.write_text(text)
    return read_profile(path, steps=steps, **options)


TIMES = {"sam": 31.7, "prefill": [27.9, 28.1, 27.7], "decode": [7.5, 7.6, 7.7]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**TIMES, "sam": [31.7]}),
        json.dumps(TIMES),
        json.dumps({"time_ms": TIMES}),
        json.dumps({"times_ms": TIMES, "anything": "else"}),
        json.dumps(
            [{"stage": "sam", "time_ms": 31.7}]
            + [
                {"stage": stage, "time_ms": value, "repeat": repeat}
                for stage in ("decode", "prefill")
                for repeat, value in reversed(list(enumerate(TIMES[stage])))
            ]
        ),
        "stage,time_ms,repeat\nsam,31.7,0\nprefill,27.9,0\nprefill,28.1,1\nprefill,27.7,2\n"
        "decode,7.5,0\ndecode,7.6,1\ndecode,7.7,2\n",
        "repeat, time_ms, stage\n1, 28.1, prefill\n0, 27.9, prefill\n2, 27.7, prefill\n0, 31.7, sam\n"
        "0, 7.5, decode\n1, 7.6, decode\n2, 7.7, decode\n",
    ],
    ids=["lists", "mixed", "time_ms", "times_ms", "rows", "csv", "csv of another order"],
)
def test_all_forms_say_the_same(tmp_path, text):
    profile = read(tmp_path, text)
    assert profile.times_ms == {
        "sam": (31.7,),
        "prefill": (27.9, 28.1, 27.7),
        "decode": (7.5, 7.6, 7.7),
        "decode_total": (22.5, pytest.approx(22.8), pytest.approx(23.1)),
    }
    assert any("decode is the time of one step" in note for note in profile.notes)


def test_step_follows_from_all_steps(tmp_path):
    profile = read(tmp_path, '{"decode_total": 30.0}')
    assert profile.times_ms == {"decode": (10.0,), "decode_total": (30.0,)}


def test_without_repeat_column_a_stage_stands_once(tmp_path):
    assert read(tmp_path, "stage,time_ms\nsam,1.5\n").times_ms == {"sam": (1.5,)}
    with pytest.raises(
        StagemeterError, match=r"sam has a time of repeat 0 already. Number the repeats in a column 'repeat'"
    ):
        read(tmp_path, "stage,time_ms\nsam,1.5\nsam,1.6\n")


def test_names_are_mapped_and_wall_time_is_kept_apart(tmp_path):
    text = '{"vit": 3.0, "llm/first": 5.0, "request": [9.0]}'
    profile = read(tmp_path, text, mapping=NameMapping({"sam": ["vit"], "prefill": ["llm/*"]}))
    assert profile.times_ms == {"sam": (3.0,), "prefill": (5.0,)}
    assert profile.request_ms == (9.0,)


def test_names_of_one_stage_add_up(tmp_path):
    profile = read(
        tmp_path, '{"encoder.a": [1.0, 2.0], "encoder.b": [0.5, 0.25]}', mapping=NameMapping({"sam": ["e*"]})
    )
    assert profile.times_ms == {"sam": (1.5, 2.25)}


def test_profile_survives_being_written(tmp_path):
    profile = Profile(
        times_ms={"prefill": (1.0, 2.0), "decode": (0.5, 0.5), "decode_total": (1.5, 1.5)},
        source="session",
        clock="CUDA events",
        request_ms=(3.0, 4.0),
        metrics={"memory/peak": 5.0},
        hardware={"device": "A100"},
        notes=("a note",),
        lengths=LENGTHS,
    )
    again = read(tmp_path, json.dumps(profile.to_dict()))
    assert again.times_ms == profile.times_ms
    assert (again.clock, again.request_ms, again.metrics) == ("CUDA events", (3.0, 4.0), {"memory/peak": 5.0})
    assert again.hardware == {"device": "A100"}
    assert "a note" in again.notes
    assert again.lengths == LENGTHS


def test_damaged_lengths_of_a_profile_are_named(tmp_path):
    profile = Profile(times_ms={"prefill": (1.0,)}, source="vLLM metrics", clock="wall time", lengths=LENGTHS)
    with pytest.raises(StagemeterError, match="lengths: no lengths of requests"):
        read(tmp_path, json.dumps(profile.to_dict() | {"lengths": {"prompt": 3}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sam": 0}', "sam: 0 ms is no time"),
        ('{"sam": -2.5}', r"sam: -2\.5 ms is no time"),
        ('{"sam": 1e999}', "sam: inf is no time"),
        ('{"sam": "1"}', "'1' is no number"),
        ('{"sam": true}', "True is no number"),
        ('{"sam": []}', "sam: the list is empty"),
        ('{"sam": {"a": 1}}', "a dict is no time"),
        ('{"sam": 1, "sam": 2}', "'sam' is given more than once"),
        ('{"smm": 1}', r"'smm' is no stage\. Map it, such as --map prefill=smm\. Did you mean 'sam'"),
        ("{}", "the file holds no times"),
        ('[{"stage": "sam"}]', "has no 'stage' and 'time_ms'"),
        ('[{"stage": "sam", "time_ms": 1, "repeat": 1.5}]', "repeat 1.5 is no whole"),
        ("stage,time_ms\nsam\n", "other columns than the header"),
        ("stage,time_ms\nsam,fast\n", "line 2: sam: 'fast' is no number"),
        ("stage,time_ms\nsam,nan\n", "is no time"),
        ("stage,time_ms\n", "the file holds no times"),
        ("stage,milliseconds\nsam,1\n", "a table of times, stage,time_ms"),
    ],
)
def test_values_that_are_no_times(tmp_path, text, message):
    with pytest.raises(StagemeterError, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "times.dat") in str(caught.value)


def test_decode_time_of_a_request_without_steps_is_refused(tmp_path):
    with pytest.raises(StagemeterError, match="has no decode step"):
        read(tmp_path, '{"decode": 1.0}', steps=0)


def test_advised_option_is_one_word_of_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text('{"a $(reboot) b": 1}')
    with pytest.raises(StagemeterError, match=r"--map 'prefill=a \$\(reboot\) b'"):
        read_profile(path, steps=1)


@pytest.mark.parametrize(
    ("key", "value"), [("request_ms", 5), ("notes", 5), ("notes", "abc"), ("measured", {"new_tokens": True})]
)
def test_field_of_a_profile_that_is_of_another_kind_is_refused(tmp_path, key, value):
    file = tmp_path / "profile.json"
    written = Profile(times_ms={"prefill": (1.0,)}, source="test", clock="test").to_dict()
    file.write_text(json.dumps({**written, key: value}))
    with pytest.raises(StagemeterError, match=f"{key}: .* does not belong into a profile"):
        read_profile(file, steps=3)
