"""Names of other tools become names of stages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from pages_of_deepseek import STAGES, VISION, NameMapping, stage_names

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers import mapping as readers_mapping
from stagemeter.profiling.readers.mapping import near

load = partial(readers_mapping.NameMapping.load, VISION)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_own_name_needs_no_mapping(stage: str) -> None:
    names = stage_names(None, "trace.json")
    assert [names.stage(name) for name in (stage, f":{stage}", f"ocr:{stage}")] == [stage] * 3
    assert names.notes() == ()


@pytest.mark.parametrize("name", ["Prefill", "prefill ", "prefill:", "aten::prefill", "a:b:prefill", "xprefill", ""])
def test_other_names_are_not_a_stages_own(name: str) -> None:
    assert stage_names(None, "trace.json").stage(name) is None


def test_patterns_are_those_of_a_shell_and_case_matters() -> None:
    names = stage_names(NameMapping({"prefill": ["fwd*", "Ctx?"], "sam": ["vit[01]"], "decode": ["gen ("]}), "t")
    found = {name: names.stage(name) for name in ("fwd_7", "Ctx1", "ctx1", "Ctx12", "vit1", "vit2", "gen (", "x fwd")}
    assert found == {
        "fwd_7": "prefill",
        "Ctx1": "prefill",
        "ctx1": None,
        "Ctx12": None,
        "vit1": "sam",
        "vit2": None,
        "gen (": "decode",
        "x fwd": None,
    }


def test_a_name_cannot_be_two_stages() -> None:
    names = stage_names(NameMapping({"clip": ["*clip*"], "prefill": ["prefill*"]}), "trace.json")
    with pytest.raises(
        StagemeterError, match=r"trace\.json: 'prefill_clip' matches two stages, clip by '\*clip\*' and prefill by"
    ):
        names.stage("prefill_clip")
    both = stage_names(NameMapping({"clip": ["*clip*", "prefill*"]}), "trace.json")
    assert both.stage("prefill_clip") == "clip"


def test_a_stages_own_name_comes_before_patterns() -> None:
    names = stage_names(NameMapping({"prefill": ["*"]}), "trace.json")
    assert (names.stage("sam"), names.stage("other")) == ("sam", "prefill")
    assert names.notes() == ("'sam' is a stage's own name and stays one, although a pattern for prefill matches it",)


def test_patterns_that_match_nothing_are_named() -> None:
    names = stage_names(NameMapping({"prefill": ["fwd", "forwrd"]}), "trace.json")
    names.stage("fwd")
    assert names.notes() == ("the pattern 'forwrd' for prefill matches nothing",)


def test_names_of_no_stage_are_listed_by_frequency() -> None:
    names = stage_names(None, "trace.json")
    for count, name in enumerate(["a", "b", "c", "d", "e", "f", "g", "ProfilerStep#3"], 1):
        for _ in range(count):
            names.stage(name)
    assert names.notes() == ("names that stand for no stage: g (7 x), f (6 x), e (5 x), d (4 x), c (3 x) and 2 more",)


def test_names_with_running_numbers_do_not_pile_up() -> None:
    names = stage_names(NameMapping({"decode": ["step *"]}), "trace.json")
    for number in range(2**16 + 100):
        assert names.stage(f"aten::add, seq = {number}") is None
    assert names.stage("step 7") == "decode"
    assert len(names.unmapped) == 2**16


def test_a_file_and_pairs_together(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("prefill: [fwd*, run]\nsam: vit\n")
    mapping = load(path, ["prefill=ctx=1", "clip=c*"])
    assert mapping.patterns == {"prefill": ("fwd*", "run", "ctx=1"), "sam": ("vit",), "clip": ("c*",)}
    assert load().patterns == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefil: [x]", r"names\.yaml: 'prefil' is no stage. Did you mean 'prefill'\?"),
        ("vit: [x]", r"names\.yaml: 'vit' is no stage. Known are sam, clip"),
        ("sam: []", r"names\.yaml: sam: \[\] is no pattern"),
        ("sam:", r"names\.yaml: sam: None is no pattern"),
        ("sam: [3]", r"names\.yaml: sam: \[3\] is no pattern"),
        ("sam: {a: b}", r"names\.yaml: sam: {'a': 'b'} is no pattern"),
        ("sam: ['']", r"names\.yaml: sam has an empty pattern"),
        ("sam: x\nsam: y", r"names\.yaml: 'sam' is given more than once"),
        ("- sam", r"names\.yaml: holds a list. Write a mapping as"),
        ("", r"names\.yaml: the file holds no mapping"),
        ("sam: [x", r"names\.yaml: is not YAML"),
        ("sam: !!python/object:os.system x", r"names\.yaml: .*Write plain values, no tags"),
    ],
)
def test_files_that_hold_no_mapping_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(text)
    with pytest.raises(StagemeterError, match=message):
        load(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StagemeterError, match="no such mapping file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(StagemeterError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(StagemeterError, match="is not text"):
        load(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("prefill", "--map 'prefill': it has no '='. Write stage=pattern"),
        ("prefil=x", "--map 'prefil=x': 'prefil' is no stage. Did you mean 'prefill'"),
        ("sam=", "--map 'sam=': sam has an empty pattern"),
        ("=x", "--map '=x': '' is no stage"),
    ],
)
def test_pairs_that_are_none_are_refused(pair: str, message: str) -> None:
    with pytest.raises(StagemeterError, match=message):
        load(pairs=[pair])


def test_near_names() -> None:
    assert near("projectr", STAGES) == "Did you mean 'projector'?"
    assert near("zzz", ["a", "b"]) == "Known are a, b"


def test_stages_are_those_of_the_model():
    text = readers_mapping.NameMapping(())
    assert text.stages == ("prefill", "decode", "decode_total", "forward", "request")
    names = readers_mapping.StageNames(readers_mapping.NameMapping(("vit", "merger")), "trace.json")
    assert (names.stage("merger"), names.stage("sam")) == ("merger", None)
    with pytest.raises(StagemeterError, match="'sam' is no stage"):
        readers_mapping.NameMapping(("vit",), {"sam": ["*"]})
