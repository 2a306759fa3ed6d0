"""Logs of requests: their costs are the sums over the requests alone, and equal those of requests that were served."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.analysis.request_costs import RequestCosts
from stagemeter.analysis.request_logs.check import BadLines, Requests
from stagemeter.analysis.request_logs.columns import NAMES
from stagemeter.analysis.request_logs.log import open_log
from stagemeter.analysis.request_logs.reading import BATCH
from stagemeter.application.requests import analyze_requests

ROOT = Path(__file__).parents[1]
SERVED = ROOT / "utilization" / "serving" / "recorded"
SCENARIOS = json.loads((SERVED / "scenarios.json").read_text(encoding="utf-8"))
PICTURES = Path(__file__).parent / "recorded_requests"
QWEN = str(SERVED / "qwen2_5_vl.config.json")
#: FLOPs by visible pairs that follow from each request's queries and their positions alone, from the same server.
TRUTH = {
    "dense_llama": 33_372_024_832,
    "prefix_cache": 18_532_270_080,
    "chunked_prefill": 22_588_465_152,
    "qwen3_moe": 1_792_516_608,
    "mistral_window": 2_053_734_912,
    "data_parallel_2": 20_390_846_464,
    "otlp_traces": 9_884_520_448,
}
#: The same with latent attention expanded in each decode step, which sees 21,250 pairs of a token and another.
EXPANDED = 16_418_087_424


def write(path, rows, names=("prompt_tokens", "cached_tokens", "output_tokens")):
    table = pandas.DataFrame(rows, columns=list(names))
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")), encoding="utf-8")
    return path


def costs_of(path, skip_bad=False, **asked):
    return analyze_requests(AnalysisConfig(**asked), path, path.parent / "out", skip_bad)


def served(name, tmp_path, ending="csv"):
    log = write(tmp_path / f"log.{ending}", SCENARIOS[name]["requests"])
    return costs_of(log, model=str(SERVED / f"{SCENARIOS[name]['config']}.config.json"))


def alone(model, prompt, cached, output, **asked):
    return estimate_model(
        describe_model(model),
        AnalysisConfig(model=model, seq_len=prompt, cached_tokens=cached or None, new_tokens=output, **asked),
    )


@pytest.mark.parametrize("name", TRUTH)
def test_visible_pairs_are_those_of_the_requests_that_were_served(name, tmp_path):
    assert served(name, tmp_path)["total"]["flops_causal"] == TRUTH[name]


@pytest.mark.parametrize("name", ["dense_llama", "prefix_cache", "mixed_lengths", "data_parallel_2"])
def test_dense_count_is_the_engines_estimate_of_whole_prompts(name, tmp_path):
    assert served(name, tmp_path)["total"]["flops"] == SCENARIOS[name]["vllm_estimate"]


def test_absorbed_steps_are_all_that_differs_for_latent_attention(tmp_path):
    """A pair takes 2 x 512 + 64 multiply-accumulates in place of 192 + 128, in 3 layers of 4 heads."""
    more = 2 * 3 * 4 * (1088 - 320) * 21_250
    assert served("deepseek_v3_mla", tmp_path)["total"]["flops_causal"] == EXPANDED + more


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_sums_are_those_of_each_request_alone(ending, tmp_path):
    found = served("prefix_cache", tmp_path, ending)
    model, rows = str(SERVED / "llama.config.json"), SCENARIOS["prefix_cache"]["requests"]
    reports = [alone(model, *row) for row in rows]
    for name in ("flops", "flops_causal", "flops_executed"):
        assert found["total"][name] == sum(report["total"][name] for report in reports)
        assert found["stages"]["prefill"][name] == sum(report["stages"]["prefill"][name] for report in reports)
        assert found["stages"]["decode"][name] == sum(report["stages"]["decode"][f"{name}_total"] for report in reports)
    flops = sorted(report["total"]["flops"] for report in reports)
    assert [found["flops_per_request"][name] for name in ("min", "p50", "max")] == [flops[0], flops[5], flops[-1]]
    assert [one["flops"] for one in found["dearest"]] == flops[::-1][:10]
    dearest = found["dearest"][0]
    first = 1 if ending != "csv" else 2
    assert rows[dearest["line"] - first] == [dearest[f"{name}_tokens"] for name in ("prompt", "cached", "output")]


@pytest.mark.parametrize("chunk", [1, 256])
@pytest.mark.parametrize("name", ["prefix_cache", "mistral_window", "deepseek_v3_mla"])
def test_sums_of_prompts_in_chunks_are_those_of_each_request_alone(name, chunk, tmp_path):
    model, rows = str(SERVED / f"{SCENARIOS[name]['config']}.config.json"), SCENARIOS[name]["requests"]
    found = costs_of(write(tmp_path / "log.csv", rows), model=model, chunk_tokens=chunk)["stages"]["prefill"]
    reports = [alone(model, *row, chunk_tokens=chunk)["stages"]["prefill"] for row in rows]
    for quantity in ("flops", "flops_causal", "flops_executed", "kv_bytes_read", "kv_bytes_written"):
        assert found[quantity] == sum(report[quantity] for report in reports)


def test_chunks_are_those_of_the_engine_but_for_their_rows_of_the_head(tmp_path):
    """A server that cut prompts into chunks of 256 counts a row of the head for each of them, 11 more than requests.

    transformers runs the head after each chunk, too. The vocabulary is 1,024 and the width 256.
    """
    scenario = SCENARIOS["chunked_prefill"]
    log = write(tmp_path / "log.csv", scenario["requests"])
    found = costs_of(log, model=str(SERVED / f"{scenario['config']}.config.json"), chunk_tokens=256)["total"]
    assert found["flops_causal"] == TRUTH["chunked_prefill"]
    assert found["flops"] + 11 * 2 * 1024 * 256 == scenario["vllm_estimate"] == found["flops_executed"]


def test_page_of_a_log_that_a_prompt_holds():
    """A page of 448 x 336 pixels takes 192 tokens, one of 612 x 792 takes 616."""
    costs = RequestCosts(describe_model(QWEN), AnalysisConfig(model=QWEN), BadLines(Path("log"), skip=False))
    number = np.arange(1, 4)
    costs.add(Requests(number, number + 700, number * 0, number, number - 1, (((448, 336),), ((612, 792),), ())))
    assert [costs.pages.largest_within(tokens) for tokens in (192, 193, 617)] == [None, (448, 336), (612, 792)]


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_batches_and_kinds_of_numbers_change_nothing(data):
    """Logs that are cut anywhere, with numbers beyond 64 bits, have the sums of Python's integers."""
    name = data.draw(st.sampled_from(["llama-3.1-8b", "deepseek-v3", "gemma-3-4b"]))
    model, longest = describe_model(name), data.draw(st.sampled_from([100, 2**20]))
    rows = []
    for _ in range(data.draw(st.integers(1, 5))):
        prompt = data.draw(st.integers(2, longest))
        rows.append((prompt, data.draw(st.integers(0, prompt - 1)), data.draw(st.integers(1, longest))))
    costs = RequestCosts(model, AnalysisConfig(model=name), BadLines(Path("log"), skip=False))
    cut = data.draw(st.integers(0, len(rows)))
    for part in filter(None, (rows[:cut], rows[cut:])):
        prompt, cached, output = (np.asarray(column, np.int64) for column in zip(*part, strict=True))
        none = np.zeros(len(part), np.int64)
        costs.add(Requests(np.arange(len(part)), prompt, cached, output, none))
    found = costs.document()["total"]
    one_by_one = [costs.pages.language((), *row) for row in rows]
    for quantity in ("flops", "flops_causal"):
        each = (getattr(needed, quantity) for stages in one_by_one for needed, _ in stages.values())
        assert found[quantity] == sum(each)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-5,0,3", "prompt_tokens is -5, not a whole number from 1"),
        ("5,0,", "output_tokens is missing"),
        ("5,0,0", "output_tokens is 0, not"),
        ("5,-1,2", "cached_tokens is -1, not"),
        ("5,6,2", "cached_tokens 6 are more than prompt_tokens 5"),
        ("5,5,2", "cached_tokens 5 are the whole prompt"),
        ("5.5,0,2", "prompt_tokens is 5.5, not"),
        ("five,0,2", "prompt_tokens is 'five', not"),
        ("true,0,2", "prompt_tokens is 'true', not"),
        ("inf,0,2", "prompt_tokens is inf, not"),
        ("9999999999999999999999,0,2", "prompt_tokens is (')?9999999999999999999999|10{22}"),
    ],
)
def test_bad_lines_are_named_or_skipped(line, reason, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(f"prompt_tokens,cached_tokens,output_tokens\n7,0,2\n\n{line}\n8,,2\n", encoding="utf-8")
    with pytest.raises(StagemeterError, match=f"log.csv: line 4: {reason}"):
        costs_of(log, model="llama-3.1-8b")
    found = costs_of(log, model="llama-3.1-8b", skip_bad=True)
    assert (found["requests"], found["skipped"]["lines"], found["skipped"]["first"][0]["line"]) == (2, 1, 4)
    assert (tmp_path / "out" / "requests.md").read_text(encoding="utf-8").count("skipped line 4") == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("prompt_tokens,output_tokens\n", "holds no request"),
        ("prompt,output\n1,2\n", "lacks a column prompt_tokens; it has 'prompt', 'output'"),
        ("prompt_tokens\n1\n", "lacks a column output_tokens"),
        ("prompt_tokens,output_tokens,input_len\n1,2,3\n", "prompt_tokens and input_len mean the same"),
        ("prompt_tokens,output_tokens,output_tokens\n1,2,3\n", "mean the same"),
        ("prompt_tokens,output_tokens\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("prompt_tokens,output_tokens\n1,2,3\n", "line 2: has more columns than the header"),
        ("input_tokens,output_tokens,cache_read_input_tokens\n1,2,3\n", "counts tokens beside those of the prompt"),
        ("prompt_tokens,output_tokens,total_tokens\n1,2,4\n", "line 2: total_tokens 4 is not prompt_tokens 1"),
        (
            "prompt_tokens,output_tokens,image_sizes,image_id\n9,2,,x\n",
            "line 2: image_ids is 'x', and the request has no pictures",
        ),
        ("prompt_tokens,output_tokens,image_width\n1,2,4\n", "has image_width. Give image_width and image_height"),
        ("prompt_tokens,output_tokens,image_sizes\n1,2,4x4\n", "line 2: has a picture, and llama-3.1-8b reads text"),
        ('{"prompt_tokens": 1, "output_tokens": 1}\n{"prompt_tok\n', "line 2: is no JSON"),
        ('{"prompt_tokens": 1, "output_tokens": 1}\n[1]\n', r"line 2: is \[1\], not an object"),
        ('{"prompt_tokens": 1, "output_tokens": true}\n', "line 1: output_tokens is True, not"),
        ('{"prompt_tokens": 1, "output_tokens": 1}\n{}\n', "line 2: prompt_tokens is missing"),
        ('{"prompt_tokens": 1' + "0" * 400 + ', "output_tokens": 3}', "line 1: prompt_tokens is 1000"),
        ("id,prompt_tokens,output_tokens\n7,,\n", "line 2: prompt_tokens is missing"),
        ('{"prompt_tokens": [1], "output_tokens": 3}\n', r"line 1: prompt_tokens is \[1\], not"),
        ('{"prompt_tokens": 9, "input_len": 8, "output_tokens": 1}\n', "line 1: says prompt_tokens twice: "),
        ("PAR1 and no more", "is a damaged Parquet file"),
    ],
)
def test_logs_that_cannot_be_used_are_refused(content, reason, tmp_path):
    log = tmp_path / "log"
    log.write_text(content, encoding="utf-8")
    with pytest.raises(StagemeterError, match=reason):
        costs_of(log, model="llama-3.1-8b")
    assert not (tmp_path / "out" / "requests.json").exists()


def test_truncated_files_are_refused(tmp_path):
    log = write(tmp_path / "log.parquet", [(9, 0, 2)] * 99)
    log.write_bytes(log.read_bytes()[:-9])
    with pytest.raises(StagemeterError, match="is a damaged Parquet file"):
        costs_of(log, model="llama-3.1-8b")
    log.write_bytes(b"prompt_tokens,output_tokens\n\xff\xfe,2\n")
    with pytest.raises(StagemeterError, match="is not CSV, JSON Lines or Parquet"):
        costs_of(log, model="llama-3.1-8b")


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_damaged_logs_are_refused_or_read(data):
    """Whatever the bytes are, the answer is a document or an error for the user."""
    good = (PICTURES / "qwen2_5_vl.jsonl").read_bytes()
    table = b"prompt_tokens,output_tokens,image_sizes\n900,5,600x800\n9,2,\n'7',\"3\n"
    content = bytearray(data.draw(st.sampled_from([good, table]) | st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b"\0")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_bytes(content)
        skip = data.draw(st.booleans())
        with contextlib.suppress(StagemeterError):
            assert costs_of(log, model=QWEN, skip_bad=skip)["total"]["flops"] > 0


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ("600x800", None),
        ("600 X 800", None),
        ("[600, 800]", None),
        ("[[600, 800]]", None),
        ('[{""width"": 600, ""height"": 800}]', None),
        ("[[600, 800], [600]]", r"line 2: image_sizes is '\[\[600, 800\], \[600\]\]', not"),
        ("600x800,", "line 2: image_sizes is '600x800,', not"),
        ("9" * 5000 + "x8", "line 2: image_sizes is '999"),
        ("600x", "line 2: image_sizes is '600x', not"),
        ("[600, 0]", r"line 2: image_sizes is '\[600, 0\]', not"),
        ("[600", r"line 2: image_sizes is '\[600', not"),
        ("[[600, 800, 3]]", r"line 2: image_sizes is '\[\[600, 800, 3\]\]', not"),
        ("1x90000", "line 2: a page of 1 x 90000 pixels"),
    ],
)
def test_sizes_of_pictures(sizes, reason, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(f'prompt_tokens,output_tokens,image_sizes\n900,5,"{sizes}"\n900,5,\n', encoding="utf-8")
    if reason is not None:
        with pytest.raises(StagemeterError, match=reason):
            costs_of(log, model="qwen2.5-vl-7b")
        return
    found = costs_of(log, model="qwen2.5-vl-7b")
    page = alone("qwen2.5-vl-7b", 900, 0, 5, image_w=600, image_h=800)
    assert (found["pages"], found["requests"]) == (1, 2)
    assert found["stages"]["vit"]["flops"] == page["stages"]["vit"]["flops"]
    assert found["stages"]["prefill"]["flops"] == 2 * page["stages"]["prefill"]["flops"]


def test_lists_of_sizes_are_read_from_parquet(tmp_path):
    names, rows = ("prompt_tokens", "output_tokens", "image_sizes"), [(900, 5, [[600, 800]]), (900, 5, [])]
    found = costs_of(write(tmp_path / "log.parquet", rows, names), model="qwen2.5-vl-7b")
    assert (found["pages"], found["requests"]) == (1, 2)


@pytest.mark.parametrize(
    ("model", "row", "reason"),
    [
        ("qwen2.5-vl-7b", (600, 0, 5), "prompt_tokens are too few: the page takes"),
        ("gemma-3-4b", (200, 0, 5), "prompt_tokens are too few: the page takes"),
        ("qwen2.5-vl-7b", (900, 5, 5), "cached_tokens are a part of the page"),
        ("paligemma-3b", (900, 300, 5), "see one another"),
        ("llama-3.2-11b-vision", (900, 300, 5), "attends to its page besides the prompt"),
        ("gemma-3-4b", (900, 0, 5), "chunk_tokens 100: .* a chunk holds the whole page. Give 256 or more"),
        ("paligemma-3b", (1200, 0, 5), "see one another"),
        ("llama-3.2-11b-vision", (900, 0, 5), "attends to its page besides the prompt"),
    ],
)
def test_requests_that_a_model_cannot_have_are_refused(model, row, reason, tmp_path):
    log, chunk = write(tmp_path / "log.csv", [row]), None if row[1] else 100
    with pytest.raises(StagemeterError, match=reason):
        costs_of(log, model=model, image_w=600, image_h=800, chunk_tokens=chunk)


def test_picture_in_a_late_line_is_not_the_page_of_all(tmp_path):
    log = tmp_path / "log.jsonl"
    plain = json.dumps({"prompt_tokens": 9000, "output_tokens": 5}) + "\n"
    picture = json.dumps({"prompt_tokens": 9000, "output_tokens": 5, "images": ["600x800"]})
    log.write_text(plain * 1001 + picture, encoding="utf-8")
    with pytest.raises(StagemeterError, match="line 1,002: has a picture, and a page is given for all"):
        costs_of(log, model="qwen2.5-vl-7b", image_w=600, image_h=800)
    found = costs_of(log, skip_bad=True, model="qwen2.5-vl-7b", image_w=600, image_h=800)
    assert (found["pages"], found["skipped"]["lines"]) == (1001, 1)


def test_pages_are_asked_for_and_settings_of_requests_are_refused(tmp_path):
    log = write(tmp_path / "log.csv", [(9, 0, 5)])
    with pytest.raises(StagemeterError, match="does not say which requests have a picture"):
        costs_of(log, model="qwen2.5-vl-7b")
    with pytest.raises(StagemeterError, match="new_tokens 5: each request says its own"):
        costs_of(log, model="llama-3.1-8b", new_tokens=5)
    log = write(tmp_path / "page.csv", [(9, 5, None)], ("prompt_tokens", "output_tokens", "image_sizes"))
    with pytest.raises(StagemeterError, match="has no picture, and trocr-base reads none of text alone"):
        costs_of(log, model="trocr-base")


def test_columns_are_known_by_each_of_their_names(tmp_path):
    for column, names in NAMES.items():
        for name in names:
            row = {"prompt_tokens": 9, "cached_tokens": 4, "output_tokens": 3, "total_tokens": 12}
            value = row.pop(column, "600x600" if column == "image_sizes" else 600)
            inner = {name: value}
            if "." in name:
                inner = {}
                at = inner
                *outer, last = name.split(".")
                for part in outer:
                    at = at.setdefault(part, {})
                at[last] = value
            other = {"image_width": "image_height", "image_height": "image_width"}.get(column)
            line = {**row, **inner, **({other: 600} if other else {})}
            if column == "image_ids":
                line["image_sizes"] = "600x600"
            log = tmp_path / "log.jsonl"
            log.write_text(json.dumps(line), encoding="utf-8")
            (batch,) = open_log(log, BadLines(log, skip=False)).batches
            found = [int(getattr(batch, one)[0]) for one in ("prompt", "cached", "output")]
            assert found == [9, 4, 3]
            assert (batch.pictures[0] > 0) == column.startswith("image_")


def test_page_lists_the_names():
    page = (ROOT.parent / "docs" / "requests.md").read_text(encoding="utf-8")
    for column, names in NAMES.items():
        assert f"| `{column}` | {', '.join(f'`{name}`' for name in names)} |" in page


def test_long_logs_are_read_in_batches_with_their_lines(tmp_path):
    rows = np.full((BATCH + 10, 3), (9, 3, 2))
    rows[-1] = 900, 0, 2
    for ending, first in (("csv", 2), ("parquet", 1)):
        log = write(tmp_path / f"log.{ending}", rows)
        found = costs_of(log, model="llama-3.1-8b")
        assert found["requests"] == len(rows)
        assert found["dearest"][0]["line"] == len(rows) - 1 + first


def test_beyond_the_positions_of_a_model_is_said(tmp_path):
    found = costs_of(write(tmp_path / "log.csv", [(131_072, 0, 2), (9, 0, 2)]), model="llama-3.1-8b")
    assert any("1 requests reach more than the 131,072 positions" in note for note in found["notes"])
