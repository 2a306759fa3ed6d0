"""Every row of a sweep is what analyzing its workload on its own gives: to the integer, and bounds to the last bit."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model, estimate_report
from stagemeter.analysis.requests import plan_request
from stagemeter.models.closed_form import coefficients
from stagemeter.models.families import families
from stagemeter.models.families.deepseek_ocr.modes import MODES
from stagemeter.sweeping import build
from stagemeter.sweeping.build import SweepSettings, build_grids
from stagemeter.sweeping.evaluate import evaluate_rows, wide_columns
from stagemeter.sweeping.single import differences
from stagemeter.sweeping.table import rows_table


def grid_of(**values: str):
    (grid,) = build_grids(SweepSettings(**values))
    return grid


def wrong(grid, row):
    model = MODELS.get(grid.model) or describe_model(grid.model)
    return differences(grid, row, lambda config: estimate_model(model, config))


def some(values, most: int = 3):
    return st.lists(values, min_size=1, max_size=most, unique=True).map(lambda chosen: ",".join(map(str, chosen)))


sides = st.integers(50, 6000)


#: Every model of every family.
MODELS = {name: describe_model(name) for family in families().values() for name in family.shipped}


def is_refused(model, width, height, **asked):
    """Whether an analysis refuses a page, such as one that is too long for its width, or parts of its prompt."""
    try:
        plan_request(AnalysisConfig(image_w=width, image_h=height, **asked), MODELS[model])
    except StagemeterError:
        return True
    return False


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(sorted(MODELS)),
    mode=some(st.sampled_from(sorted(MODES)), 2),
    page_size=some(st.tuples(sides, sides).map(lambda size: f"{size[0]}x{size[1]}"), 2),
    batch_size=some(st.integers(1, 200) | st.integers(200, 65536), 2),
    text_tokens=some(st.integers(1, 500), 2),
    new_tokens=some(st.integers(1, 5000) | st.integers(5000, 1_000_000), 2),
    dtype=some(st.sampled_from(["bfloat16", "float32", "float16"]), 2),
    device=st.none() | some(st.sampled_from(["A100-80GB", "H100-SXM", "L40S"]), 2),
    decode_context=st.sampled_from([None, "max", "777"]),
    seq_len=st.none() | st.integers(1, 4000).map(str),
    data=st.data(),
)
def test_rows_are_single_analyses(data, **values):
    """A grid of any family, and some of its rows."""
    values["mode"] = values["mode"] if MODELS[values["model"]].family.modes else None
    pages = [tuple(map(int, size.split("x"))) for size in values["page_size"].split(",")]
    if refused := [page for page in pages if is_refused(values["model"], *page)]:
        with pytest.raises(StagemeterError):
            grid_of(**values | {"page_size": "x".join(map(str, refused[0]))})
        return
    grid = grid_of(**values)
    rows = evaluate_rows(grid, 0, grid.size)
    assert all(len(column) == grid.size for column in rows.values())
    for _ in range(3):
        assert wrong(grid, data.draw(st.integers(0, grid.size - 1))) == []


#: Families whose prompts can be computed in parts, one for each kind of layers, with pages and without.
IN_PARTS = ("llama-3.1-8b", "deepseek-v3", "qwen3-next-80b-a3b", "gpt-oss-20b", "llama-4-scout", "mamba2-default")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from(IN_PARTS),
    batch_size=some(st.integers(1, 200), 2),
    text_tokens=some(st.integers(3001, 6000), 3),
    new_tokens=some(st.integers(1, 5000), 2),
    cached_tokens=st.none() | some(st.integers(0, 3000), 3),
    chunk_tokens=st.none() | some(st.just(0) | st.integers(100, 7000), 3),
    device=st.none() | some(st.sampled_from(["A100-80GB", "H200-SXM"]), 2),
    data=st.data(),
)
def test_rows_of_prompts_in_parts_are_single_analyses(data, **values):
    grid = grid_of(**values)
    for _ in range(3):
        assert wrong(grid, data.draw(st.integers(0, grid.size - 1))) == []


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "deepseek-ocr", "gemma-3-4b"])
def test_rows_of_cached_pages_are_single_analyses(name):
    """Of pages of two sizes, the cache holds some, none, or the text behind them, too."""
    asked = {"page_size": "600x600,640x900", "text_tokens": "1400,1800", "mode": "base" if "ocr" in name else None}
    grid = grid_of(model=name, cached_tokens="0,1300", chunk_tokens="0,700", device="H100-SXM", new_tokens="9", **asked)
    assert grid.size == 2 * 2 * 2 * 2
    for row in range(grid.size):
        assert wrong(grid, row) == []


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"cached_tokens": "0,1024"}, "cached_tokens 1024: the prompt has 1024 tokens"),
        ({"model": "qwen2.5-vl-7b", "cached_tokens": "100"}, "the page begins the prompt with"),
        ({"model": "gemma-3-4b", "chunk_tokens": "100,900"}, "chunk_tokens 100: .* Give 256 or more"),
        ({"model": "paligemma-3b", "chunk_tokens": "100"}, "see one another"),
        ({"chunk_tokens": str(2**21)}, "chunk_tokens: 2097152 cannot be used"),
    ],
)
def test_parts_that_a_prompt_cannot_have_are_refused(asked, reason):
    with pytest.raises(StagemeterError, match=reason):
        grid_of(**{"model": "llama-3.1-8b", **asked})


@given(start=st.integers(0, 359), length=st.integers(1, 100))
def test_slices_are_parts_of_the_whole(start, length):
    grid = grid_of(
        mode="tiny,base,gundam", batch_size="1..12", new_tokens="1..10", page_size="600x600,900x1800,100x100"
    )
    assert grid.size == 3 * 12 * 10 * 3
    stop = min(grid.size, start + length)
    whole, part = evaluate_rows(grid, 0, grid.size), evaluate_rows(grid, start, stop)
    for name, column in part.items():
        assert np.array_equal(column, whole[name][start:stop]), name


def test_each_combination_is_there_once():
    grid = grid_of(
        mode="tiny,base", batch_size="1,2,4", new_tokens="10,20", dtype="bfloat16,float32", device="A100-80GB,H100-SXM"
    )
    rows = evaluate_rows(grid, 0, grid.size)
    names = ("mode", "batch_size", "new_tokens", "dtype", "device")
    combinations = set(zip(*(rows[name].tolist() for name in names), strict=True))
    assert len(combinations) == grid.size == 2 * 3 * 2 * 2 * 2


def test_request_of_one_token_has_no_bound_of_a_step():
    rows = evaluate_rows(grid_of(mode="tiny", new_tokens="1,2", device="A100-80GB"), 0, 2)
    assert rows["flops/decode_total"].tolist()[0] == 0
    assert math.isnan(rows["roofline_ms/decode"][0])
    assert math.isnan(rows["at_roofline/decode_tokens_per_second"][0])
    assert rows["roofline_ms/decode"][1] > 0
    assert rows["roofline_ms/total"][0] == rows["roofline_ms/forward"][0]


@pytest.mark.parametrize(("new_tokens", "wide"), [("100", False), ("1000000", True)])
def test_numbers_that_64_bits_cannot_hold_are_exact_too(new_tokens, wide):
    grid = grid_of(mode="tiny", batch_size="65536,1", new_tokens=new_tokens, device="A100-80GB")
    many, one = evaluate_rows(grid, 0, 2)["flops/total"].tolist()
    assert many == 65536 * one
    assert ("flops/total" in grid.wide) is wide is (many > 2**62)
    # A column is of one type in the whole table, and a table holds what is worked out.
    table = rows_table(grid, 0, 2)
    assert [int(value) for value in table["flops/total"].to_pylist()] == [many, one]
    assert str(table.schema.field("flops/total").type) == ("decimal128(38, 0)" if wide else "int64")
    assert str(table.schema.field("flops/sam").type) == "int64"


@settings(max_examples=15, deadline=None)
@given(data=st.data(), power=st.floats(61, 66))
def test_rows_near_the_border_of_64_bits_are_single_analyses(data, power):
    """Batches that bring the FLOPs of a request just below 2**62, 2**63 and 2**64, and just above."""
    new_tokens = data.draw(st.sampled_from([1_000_000, 400_000]))
    one = evaluate_rows(grid_of(mode="tiny", new_tokens=str(new_tokens)), 0, 1)["flops/total"].tolist()[0]
    batch = max(1, min(65_536, int(2**power / one)))
    grid = grid_of(mode="tiny", batch_size=f"{batch},1", new_tokens=f"{new_tokens},7", device="H100-SXM")
    for row in range(grid.size):
        assert wrong(grid, row) == []


def test_what_no_table_holds_is_refused():
    with pytest.raises(StagemeterError, match=r"reaches \d{39,} at the largest batch .* more than a table holds"):
        wide_columns(replace(grid_of(mode="tiny", new_tokens="1000000"), batch_sizes=(10**25,)))


def test_what_does_not_fit_has_no_throughput():
    grid = grid_of(mode="tiny", batch_size="1,16384", device="T4,H100-SXM", dtype="float16")
    rows = evaluate_rows(grid, 0, grid.size)
    found = list(zip(rows["device"].tolist(), rows["batch_size"].tolist(), strict=True))
    for name in ("first_token_ms", "decode_tokens_per_second", "tokens_per_second", "pages_per_hour"):
        missing = np.isnan(rows[f"at_roofline/{name}"]).tolist()
        assert dict(zip(found, missing, strict=True)) == {
            ("T4", 1): False, ("T4", 16384): True, ("H100-SXM", 1): False, ("H100-SXM", 16384): True
        }  # fmt: skip
    assert not np.isnan(rows["roofline_ms/total"]).any()


def test_a_family_that_shares_a_class_is_swept_as_what_it_is():
    """Unlimited-OCR has DeepSeek-OCR's sizes, and another window and other views."""
    asked = {"new_tokens": "20000", "page_size": "1240x1754"}
    unlimited, plain = (grid_of(model=name, **asked) for name in ("unlimited-ocr-default", "deepseek-ocr"))
    assert (unlimited.family_name, plain.family_name) == ("unlimited-ocr", "deepseek-ocr")
    report = estimate_model(
        describe_model("unlimited-ocr-default"), AnalysisConfig(new_tokens=20000, image_w=1240, image_h=1754)
    )
    rows = evaluate_rows(unlimited, 0, 1)
    assert rows["flops/total"].tolist() == [report["total"]["flops"]]
    assert rows["memory/kv_cache"].tolist() == [report["total"]["kv_cache_bytes"]]
    assert rows["mode"].tolist() == ["own"]


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-4-scout"])
def test_rows_have_executed_work_and_visible_pairs_as_reports_do(name):
    """Latent attention expands in each step of transformers, and every expert of Llama 4 runs on every token."""
    config = AnalysisConfig(model=name, new_tokens=300, batch_size=2, seq_len=900)
    report = estimate_model(describe_model(name), config)
    rows = evaluate_rows(grid_of(model=name, new_tokens="300", batch_size="2", seq_len="900"), 0, 1)
    for quantity in ("flops", "flops_causal", "flops_executed"):
        decode = report["stages"]["decode"]
        assert rows[f"{quantity}/decode"].item() == decode[quantity]
        assert rows[f"{quantity}/decode_total"].item() == decode[f"{quantity}_total"]
        assert rows[f"{quantity}/total"].item() == report["total"][quantity]
    assert rows["flops_executed/decode"].item() > 4 * rows["flops/decode"].item()
    assert rows["flops_causal/prefill"].item() < rows["flops/prefill"].item()


def test_a_model_without_closed_forms_is_refused_with_the_reason(monkeypatch):
    llama = MODELS["llama-3.1-8b"]
    stages = tuple(replace(stage, cost=None) for stage in llama.family.stages)
    counted = replace(llama, family=replace(llama.family, stages=stages), notes=("it was found by its code",))
    monkeypatch.setattr(build, "describe_model", lambda name: counted)
    with pytest.raises(StagemeterError, match=r"no family has closed forms for it.*it was found by its code"):
        grid_of(model="llama-3.1-8b")


def test_requests_of_text_alone_have_neither_pages_nor_modes():
    grid = grid_of(model="llama-3.1-8b", page_size="600x600,900x900", text_tokens="10,64", device="L40S")
    assert grid.size == 2
    rows = evaluate_rows(grid, 0, 2)
    assert rows["mode"].tolist() == ["text", "text"]
    assert rows["prompt_tokens"].tolist() == rows["text_tokens"].tolist() == [10, 64]
    (alone,) = evaluate_rows(grid_of(model="llama-3.1-8b"), 0, 1)["prompt_tokens"]
    assert alone == 1024
    assert "at_roofline/pages_per_hour" not in rows


def test_modes_are_refused_where_the_processor_decides():
    assert grid_of(model="unlimited-ocr-default").size == 1
    with pytest.raises(StagemeterError, match="mode: unlimited-ocr-default has no modes"):
        grid_of(model="unlimited-ocr-default", mode="tiny,base,gundam")


@pytest.mark.parametrize("name", MODELS)
def test_no_closed_form_has_a_negative_coefficient(name):
    """The largest variables give the largest values, on which `wide_columns` rests."""
    forms = coefficients(MODELS[name].family, MODELS[name].architecture)
    for stage in (*forms["stages"].values(), *forms["executed"].values()):
        for terms in stage["quantities"].values():
            assert all(term["coefficient"] > 0 for term in terms)


def test_models_are_grids_of_their_own():
    grids = build_grids(SweepSettings(model="deepseek-ocr,deepseek-ocr-small", mode="tiny"))
    totals = [evaluate_rows(grid, 0, 1)["flops/total"].item() for grid in grids]
    reports = [
        estimate_report(describe_model(name).architecture, name, AnalysisConfig(model=name, mode="tiny"))
        for name in ("deepseek-ocr", "deepseek-ocr-small")
    ]
    assert totals == [report["total"]["flops"] for report in reports]


def test_wrong_closed_form_is_found_out():
    grid = grid_of(mode="tiny")
    stages = {**grid.closed_form["stages"]}
    terms = [{**term, "coefficient": term["coefficient"] + 1} for term in stages["clip"]["quantities"]["macs"]]
    stages["clip"] = {**stages["clip"], "quantities": {**stages["clip"]["quantities"], "macs": terms}}
    spoilt = replace(grid, closed_form={**grid.closed_form, "stages": stages})
    lines = wrong(spoilt, 0)
    assert any("macs/clip is" in line for line in lines)


@pytest.mark.parametrize("model", ["qwen2.5-vl-7b", "llava-onevision-0.5b"])
def test_rows_of_several_pages_a_request_equal_their_reports(model):
    grid = grid_of(model=model, images_per_request="1,3", page_size="800x600,2000x500", batch_size="1,2", device="L40S")
    assert grid.size == 8
    assert [wrong(grid, row) for row in range(grid.size)] == [[]] * grid.size


def test_models_of_one_page_are_not_swept_with_several():
    with pytest.raises(StagemeterError, match="images_per_request: 2 pages, and deepseek-ocr"):
        grid_of(images_per_request="1,2")
