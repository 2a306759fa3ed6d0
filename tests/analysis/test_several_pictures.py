"""Logs of requests with several pictures: each request costs what it costs alone, and a picture is encoded once."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.analysis.calls import Call
from stagemeter.analysis.request_costs import RequestCosts
from stagemeter.analysis.request_logs.check import BadLines, checked
from stagemeter.application.requests import analyze_requests
from stagemeter.core.cost import total
from stagemeter.models.closed_form import needed_cost, stage_cost
from stagemeter.models.families import families
from stagemeter.models.page_views import NO_PAGE, workload_of_views
from stagemeter.utilization.calls import CallMeter

RECORDED = Path(__file__).parent / "recorded_requests"
QWEN = str(Path(__file__).parents[1] / "utilization" / "serving" / "recorded" / "qwen2_5_vl.config.json")
COUNTS = ("flops", "flops_causal", "flops_executed")
#: One model of each family that takes several pages, and of those whose models differ.
MODELS = [next(iter(family.shipped)) for family in families().values() if family.tags is not None]
MODELS = [*MODELS, "qwen2.5-vl-7b", "llava-onevision-0.5b"]
#: Models whose language part sees pages as other than text, or whose encoders run several pages as one sequence.
OTHERWISE = ["gemma-3-4b", "mistral-small-3.1-24b", "qwen2.5-vl-7b"]
SIZES = ((224, 224), (640, 200), (300, 900))


def alone(model, sizes, prompt, cached, output, **asked):
    """Return the counts of a request by stage, as `analyze` has them."""
    if not sizes:
        return text_alone(describe_model(model), prompt, cached, output, asked.get("chunk_tokens"))
    further = tuple(f"{width}x{height}" for width, height in sizes[1:])
    page = {"image_w": sizes[0][0], "image_h": sizes[0][1], "further_pages": further or None}
    config = AnalysisConfig(
        model=model, seq_len=prompt, cached_tokens=cached or None, new_tokens=output, **page, **asked
    )
    stages = estimate_model(describe_model(model), config)["stages"]
    whole = {"decode": "_total"}
    return {name: [stage[f"{one}{whole.get(name, '')}"] for one in COUNTS] for name, stage in stages.items()}


def text_alone(model, prompt, cached, output, chunk=None):
    """Return the counts of a request without a picture, each step of its decode counted."""
    family, sizes = model.family, model.architecture
    asked = {"text_tokens": prompt, "prompt_tokens": prompt, "new_tokens": output, "batch_size": 1, "dtype": "bfloat16"}
    parts = {"cached_tokens": cached or None, "chunk_tokens": chunk}
    workload = workload_of_views((0, 0), NO_PAGE, decode_context=prompt + 1, **asked, **parts)
    found = {}
    for name, contexts in (("prefill", [prompt + 1]), ("decode", range(prompt + 1, prompt + output))):
        stage, at = family.stage(name), [replace(workload, decode_context=context) for context in contexts]
        needed = total(needed_cost(stage, sizes, one) for one in at)
        found[name] = [needed.flops, needed.flops_causal, total(stage_cost(stage, sizes, one) for one in at).flops]
    return found


def costs_of_rows(model, rows, skip=False, **asked):
    """Return the costs of requests of sizes, prompt, cached and output tokens and, optionally, names."""
    names = ["image_sizes", "prompt_tokens", "cached_tokens", "output_tokens", "image_ids"]
    table = pandas.DataFrame([[list(map(list, row[0])), *row[1:]] for row in rows], columns=names[: len(rows[0])])
    bad = BadLines(Path("log"), skip)
    costs = RequestCosts(describe_model(model), AnalysisConfig(model=model, **asked), bad)
    costs.add(checked(table, bad))
    return costs.document()


def require_sums_of_each(model, rows, **asked):
    found = costs_of_rows(model, rows, **asked)["stages"]
    sums = {name: [0] * len(COUNTS) for name in found}
    for row in rows:
        for name, counts in alone(model, *row, **asked).items():
            sums[name] = [one + more for one, more in zip(sums[name], counts, strict=True)]
    assert {name: [stage[one] for one in COUNTS] for name, stage in found.items()} == sums


@st.composite
def requests(draw, model):
    """Draw requests of up to three pictures, whose cache ends behind a page, in the text, or in no page."""
    costs = RequestCosts(describe_model(model), AnalysisConfig(model=model), BadLines(Path("log"), skip=False))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        sizes = tuple(draw(st.lists(st.sampled_from(SIZES), max_size=3)))
        layout = costs.pages.layout(sizes)
        ends = [0, *(end for _, end in costs.pages.places(layout))]
        least = costs.pages.prompt(layout, 1)
        prompt = least + draw(st.integers(2, 900))
        cached = draw(st.sampled_from([*ends, least, prompt - 1]))
        if model == "paligemma-3b":
            cached = 0
        rows.append((sizes, prompt, cached, draw(st.integers(1, 9))))
    return rows


@pytest.mark.parametrize("model", OTHERWISE)
@given(st.data())
@settings(max_examples=12, deadline=None)
def test_sums_are_those_of_each_request_alone(model, data):
    require_sums_of_each(model, data.draw(requests(model)))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_sums_of_every_family_are_those_of_each_request_alone(model, data):
    require_sums_of_each(model, data.draw(requests(model)))


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_sums_of_pages_that_are_read_both_ways_are_those_of_each_request_alone(data):
    """In larger models than the shipped one, the tokens of a page see one another; pages have as many as their size."""
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(families()["gemma4"].shipped["gemma-4-e2b"].read_text(encoding="utf-8"))
        config["text_config"]["use_bidirectional_attention"] = "vision"
        model = Path(folder) / "config.json"
        model.write_text(json.dumps(config), encoding="utf-8")
        require_sums_of_each(str(model), data.draw(requests(str(model))))


def test_prompts_in_chunks_are_those_of_each_request_alone():
    pages = ((224, 224), (640, 200), (224, 224))
    rows = [(pages, 900, 0, 3), (pages[:1], 400, 64, 5), ((), 700, 20, 4), (pages, 950, 227, 2)]
    require_sums_of_each("qwen2.5-vl-7b", rows, chunk_tokens=100)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_vl_prefix_cache"])
def test_pictures_of_served_requests(name, tmp_path):
    """Of eight pictures the engine encoded six: one was in the cache of prompts or of the encoder, one in the latter.

    One request has two pictures, and one has none.
    """
    log, limit = RECORDED / f"{name}.jsonl", {"max_pixels": 1_003_520}
    found = analyze_requests(AnalysisConfig(model=QWEN, **limit), log, tmp_path)
    again = name == "qwen2_5_vl_prefix_cache"
    assert [found[one] for one in ("pages", "pages_cached", "pages_encoded_before")] == [8, again, 2 - again]
    language, vision, seen = [0] * 3, dict.fromkeys(("vit", "merger"), 0), set()
    for line in log.read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        usage = request["usage"]
        sizes = tuple((one["width"], one["height"]) for one in request["images"])
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        counts = alone(QWEN, sizes, usage["prompt_tokens"], cached, usage["completion_tokens"], **limit)
        language = [sum(three) for three in zip(language, counts["prefill"], counts["decode"], strict=True)]
        for size, picture in zip(sizes, request["image_ids"], strict=True):
            if picture not in seen:
                page = alone(QWEN, (size,), 2000, 0, 1, **limit)
                vision = {stage: flops + page[stage][0] for stage, flops in vision.items()}
            seen.add(picture)
    assert len(seen) == 6
    assert {stage: found["stages"][stage]["flops"] for stage in vision} == vision
    both = [found["stages"][stage] for stage in ("prefill", "decode")]
    assert [sum(stage[one] for stage in both) for one in COUNTS] == language


def test_pictures_that_come_again_are_encoded_once():
    """The language model computes each prompt; an encoder runs for a name's first picture, and for those without."""
    page, other = (448, 336), (612, 792)
    rows = [
        ((page,), 300, 0, 5, "a"),
        ((page, other), 900, 0, 5, '["a", "b"]'),
        ((page,), 310, 250, 5, ["a"]),
        ((other, other, page), 1600, 0, 5, "c, c, a"),
        ((page, page), 600, 0, 5, [None, "a"]),
        ((page, page), 600, 0, 5, None),
        ((), 40, 0, 5, None),
    ]
    found = costs_of_rows(QWEN, rows)
    plain = costs_of_rows(QWEN, [row[:-1] for row in rows])
    one, two = (alone(QWEN, (size,), 900, 0, 5) for size in (page, other))
    for stage in ("vit", "merger"):
        assert found["stages"][stage]["flops"] == 4 * one[stage][0] + 2 * two[stage][0]
        assert plain["stages"][stage]["flops"] == 7 * one[stage][0] + 3 * two[stage][0]
    for stage in ("prefill", "decode"):
        assert found["stages"][stage] == plain["stages"][stage]
    assert [found[name] for name in ("pages", "pages_cached", "pages_encoded_before")] == [11, 1, 4]
    assert sum(one["pages"] for one in found["groups"]) == 11


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        # A page of 448 x 336 pixels takes 192 tokens, those around the second one take 2.
        ((((448, 336), (448, 336)), 600, 195, 5), "a part of page 2 of 2, which is tokens 195 to 386 of the prompt"),
        ((((448, 336), (448, 336)), 600, 385, 5), "a part of page 2 of 2"),
        ((((448, 336), (448, 336)), 600, 191, 5), "a part of page 1 of 2, which is tokens 1 to 192"),
        ((((448, 336), (448, 336)), 386, 0, 5), "prompt_tokens are too few: the 2 pages take 384 tokens"),
        ((((448, 336), (448, 336)), 600, 0, 5, ["a"]), r"image_ids is \['a'\], and the request has 2 pictures"),
        ((((448, 336),), 600, 0, 5, ["a", "b"]), r"image_ids is \['a', 'b'\], and the request has 1 picture$"),
    ],
)
def test_bad_requests_are_named(row, reason):
    good = (((448, 336),), 300, 0, 2, *row[4:5])[: len(row)]
    good = (*good[:4], "x") if len(row) > 4 else good
    with pytest.raises(StagemeterError, match=f"line 1: .*{reason.rstrip('$')}"):
        costs_of_rows(QWEN, [good, row])
    found = costs_of_rows(QWEN, [good, row], skip=True)
    assert (found["requests"], [bad["line"] for bad in found["skipped"]["first"]]) == (1, [1])


def test_a_picture_has_one_size():
    rows = [(((448, 336),), 300, 0, 2, ["a"]), (((896, 672),), 1500, 0, 2, ["a"])]
    with pytest.raises(StagemeterError, match="line 1: image_ids has a for 896x672 pixels, and before for 448x336"):
        costs_of_rows(QWEN, rows)


def test_cache_may_end_between_pages():
    pages = ((448, 336), (448, 336))
    require_sums_of_each(QWEN, [(pages, 600, cached, 5) for cached in (0, 192, 193, 194, 386, 400)])


def test_models_of_one_picture_say_so():
    with pytest.raises(StagemeterError, match="line 0: has 2 pictures, and deepseek-ocr is counted with one a request"):
        costs_of_rows("deepseek-ocr", [(((448, 336), (448, 336)), 900, 0, 5)])


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_sizes_are_read_from_every_format(ending, tmp_path):
    pages = [[600, 800], [1024, 768]]
    written = [pages, "600x800 1024x768", "600x800,1024x768", json.dumps(pages), None, []]
    if ending == "parquet":
        written = [pages, pages, pages, pages, None, []]
    table = pandas.DataFrame({"prompt_tokens": [3000] * 6, "output_tokens": [2] * 6, "image_sizes": written})
    log = tmp_path / f"log.{ending}"
    if ending == "parquet":
        table.to_parquet(log)
    elif ending == "csv":
        table.to_csv(log, index=False)
    else:
        table.to_json(log, orient="records", lines=ending == "jsonl")
    found = analyze_requests(AnalysisConfig(model=QWEN), log, tmp_path / "out")
    assert (found["pages"], found["requests"]) == (8, 6)
    one = alone(QWEN, tuple(map(tuple, pages)), 3000, 0, 2)
    assert found["stages"]["vit"]["flops"] == 4 * one["vit"][0]


def test_call_of_several_pictures_costs_what_its_request_costs():
    call = Call(792, 0, 6, ((224, 560), (612, 792)), 776)
    cost = CallMeter(AnalysisConfig(model=QWEN, max_pixels=1_003_520)).cost(call)
    counts = alone(QWEN, call.pictures, 792, 0, 6, max_pixels=1_003_520)
    assert {name: cost.flops[name] for name in counts} == {name: one[0] for name, one in counts.items()}
