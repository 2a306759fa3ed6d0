"""Formats of request logs: each is known by its content, and its requests are those that the tool wrote."""

import json
from pathlib import Path

import pandas
import pytest

from stagemeter import AnalysisConfig, StagemeterError
from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.log import open_log
from stagemeter.application.requests import analyze_requests

RECORDED = Path(__file__).parent / "recorded_requests"


def read(path, skip=False):
    """Return format, rows, failed requests, skipped lines and notes of a log."""
    bad = BadLines(path, skip)
    log = open_log(path, bad)
    rows = [
        (int(line), int(prompt), int(cached), int(output))
        for batch in log.batches
        for line, prompt, cached, output in zip(batch.line, batch.prompt, batch.cached, batch.output, strict=True)
    ]
    failed, skipped = ([(one["line"], one["reason"]) for one in which.first] for which in (bad.failed, bad.skipped))
    return log.format, rows, failed, skipped, log.notes


def saved(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


#: Three requests of vLLM's ``bench serve``, the last of which failed.
RESULT = {
    **{"date": "20261128-113500", "duration": 1.5, "completed": 2, "failed": 1},
    **{"total_input_tokens": 30, "total_output_tokens": 8, "input_lens": [10, 20, 30], "output_lens": [5, 3, 0]},
    **{"ttfts": [0.1, 0.1, 0.0], "itls": [[0.1] * 4, [0.1] * 2, []], "errors": ["", "", "Timeout\n  at x"]},
}
TWO = [(1, 10, 0, 5), (2, 20, 0, 3)]


@pytest.mark.parametrize("indent", [None, 1])
def test_results_of_bench_serve(indent, tmp_path):
    log = saved(tmp_path / "log", json.dumps(RESULT, indent=indent))
    assert read(log) == ("bench_serving", TWO, [(3, "Timeout at x")], [], [])


def test_appended_results_with_cached_tokens(tmp_path):
    more = {**RESULT, "cached_tokens": [4, 0, 0], "total_input_tokens": 29}
    log = saved(tmp_path / "log", "\n".join(map(json.dumps, [RESULT, more])))
    rows = [*TWO, (4, 10, 4, 5), (5, 20, 0, 3)]
    told = "total_input_tokens is 59, and the lengths of the requests add up to 60"
    assert read(log)[1:] == (rows, [(3, "Timeout at x"), (6, "Timeout at x")], [], [told])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input_lens": None}, "sums up a benchmark without its requests. Run it again with --save-detailed"),
        ({"output_lens": [5, 3]}, "output_lens has 2 values, and input_lens has 3"),
        ({"errors": "none"}, "errors is 'none', not a list"),
        ({"input_lens": 7}, "input_lens is 7, not a list"),
        ({"input_lens": [10, -20, 30]}, "request 2: prompt_tokens is -20, not"),
        ({"input_lens": [10, None, 30]}, "request 2: prompt_tokens is missing"),
    ],
)
def test_damaged_results_are_refused(change, reason, tmp_path):
    log = saved(tmp_path / "log", RESULT | change)
    with pytest.raises(StagemeterError, match=reason):
        read(log)


#: Lines of an output of OpenAI's batches: answered, refused by the server, and not run in time.
BATCH = [
    {
        "custom_id": "a",
        "response": {"status_code": 200, "body": {"usage": {"prompt_tokens": 22, "completion_tokens": 2}}},
        "error": None,
    },
    {"custom_id": "b", "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}, "error": None},
    {"custom_id": "c", "response": {"status_code": 500, "body": None}, "error": None},
    {"custom_id": "d", "response": None, "error": {"code": "batch_expired", "message": "too late"}},
]
FAILED = [(2, "too long"), (3, "status 500"), (4, "too late")]


def test_output_of_batches(tmp_path):
    log = saved(tmp_path / "log", "\n".join(map(json.dumps, BATCH)))
    assert read(log) == ("JSON Lines", [(1, 22, 0, 2)], FAILED, [], [])
    assert read(saved(tmp_path / "list", BATCH)) == ("list in JSON", [(1, 22, 0, 2)], FAILED, [], [])


def test_column_named_as_what_readers_note_is_one_of_others(tmp_path):
    log = saved(tmp_path / "log", '{"prompt_tokens": 9, "output_tokens": 2, "failed": false}')
    assert read(log)[1:3] == ([(1, 9, 0, 2)], [])


def test_columns_that_begin_late_or_end_early_are_those_of_their_lines(tmp_path):
    """Values are gathered from 2,000 records at a time; flat names and objects can alternate."""
    lines = [{"prompt_tokens": 9, "output_tokens": 2}] * 2500 + [
        {"usage": {"prompt_tokens": 8, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 3}}},
        {"usage.prompt_tokens": 7, "usage": {"prompt_tokens": 7, "completion_tokens": 1}},
    ] * 1000
    rows = read(saved(tmp_path / "log", "\n".join(map(json.dumps, lines))))[1]
    assert rows[2499:2502] == [(2500, 9, 0, 2), (2501, 8, 3, 1), (2502, 7, 0, 1)]
    assert len(rows) == 4500
    assert sum(row[1] for row in rows) == 2500 * 9 + 1000 * 15


def test_status_of_an_answer_without_an_envelope(tmp_path):
    lines = [{"prompt_tokens": 9, "output_tokens": 2, "status_code": status} for status in (200, 503)]
    log = saved(tmp_path / "log", "\n".join(map(json.dumps, lines)))
    assert read(log)[1:3] == ([(1, 9, 0, 2)], [(2, "status 503")])


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_requests_fail_alike_in_every_format(tmp_path, form):
    rows = [(200, None), (503, None), (None, "timeout"), (None, None), (200, "cut off")]
    table = pandas.DataFrame(
        [{"prompt_tokens": 9, "output_tokens": 2, "status_code": status, "error": error} for status, error in rows]
    )
    log = tmp_path / f"log.{form}"
    if form == "jsonl":
        table.to_json(log, orient="records", lines=True)
    else:
        table.to_csv(log, index=False) if form == "csv" else table.to_parquet(log)
    first = 2 if form == "csv" else 1
    _, served, failed, skipped, _ = read(log)
    assert [line - first for line, *_ in served] == [0, 3]
    assert [(line - first, reason) for line, reason in failed] == [(1, "status 503"), (2, "timeout"), (4, "cut off")]
    assert skipped == []


def test_failed_requests_are_named_without_skip_bad(tmp_path):
    log = saved(tmp_path / "log", BATCH)
    costs = analyze_requests(AnalysisConfig(model="llama-3.1-8b"), log, tmp_path / "out")
    assert (costs["requests"], costs["failed"]["lines"], costs["skipped"]["lines"]) == (1, 3, 0)
    assert "failed request 3: status 500" in (tmp_path / "out" / "requests.md").read_text(encoding="utf-8")
    with pytest.raises(StagemeterError, match=r"holds no request: 3 failed \([a-z]+ 1: "):
        analyze_requests(AnalysisConfig(model="llama-3.1-8b"), saved(log, BATCH[1:]), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x1f\x8b\x08\x00", r"is packed \(gzip\). Unpack it"),
        (b"PK\x03\x04", "is packed .zip, as an Excel sheet is"),
        ("a,b\n1,2\n".encode("utf-16"), "is text in UTF-16. Save it as UTF-8"),
        (b'[{"prompt_tokens": 1, "output_tokens": 1}, 7]', "request 2: is 7, not an object"),
        (
            b'[{"prompt_tokens": 1, "output_tokens": 1}, {"prom',
            r"is no JSON, or cut off \(parse error: premature EOF\)",
        ),
        (b"[" * 100_000, "is nested more than 64 levels deep"),
        (b"[]", "holds no request. Give another log"),
        (b"[{}]", "lacks a column prompt_tokens"),
        (b"benchmarks:\n- a: 1\n", "is a report in YAML. Give that in JSON"),
    ],
)
def test_files_that_are_no_logs_are_refused(content, reason, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(content)
    with pytest.raises(StagemeterError, match=reason):
        read(log)


def test_byte_order_marks_and_windows_lines_change_nothing(tmp_path):
    lines = ['{"prompt_tokens": 9, "output_tokens": 2}', '{"prompt_tokens": 8, "output_tokens": 1.0}']
    for mark in ("", "\ufeff"):
        for end in ("\n", "\r\n", "\n\n"):
            log = tmp_path / "log"
            log.write_bytes((mark + end.join(lines)).encode())
            assert [row[1:] for row in read(log)[1]] == [(9, 0, 2), (8, 0, 1)]


def test_report_of_guidellm(tmp_path):
    form, rows, ((line, reason),), skipped, notes = read(RECORDED / "guidellm.json")
    assert (form, line, skipped, notes) == ("GuideLLM", 7, [], [])
    assert rows == [(number, 10 + 30 * number, 0, 4 + number) for number in range(1, 7)]
    assert reason.startswith("HTTPStatusError(\"Server error '500 Internal Server Error'")
    report = json.loads((RECORDED / "guidellm.json").read_text(encoding="utf-8"))
    report["benchmarks"][0]["metrics"]["request_totals"]["successful"] = 60
    assert read(saved(tmp_path / "sampled", report))[4] == [
        "the report keeps 6 of 60 successful requests, and the others are not counted"
    ]
    report["benchmarks"][0]["requests"]["successful"][2]["output_tokens"] = -1
    with pytest.raises(StagemeterError, match="request 3: output_tokens is -1, not"):
        read(saved(tmp_path / "sampled", report))


def of_aiperf(metric):
    record = json.loads((RECORDED / "aiperf.jsonl").read_text(encoding="utf-8").splitlines()[1])
    record["metrics"]["usage_prompt_tokens"] = metric
    return record


def of_spans(value):
    tokens = {"gen_ai.usage.prompt_tokens": value, "gen_ai.usage.completion_tokens": {"intValue": "2"}}
    attributes = [{"key": key, "value": one} for key, one in tokens.items()]
    return {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": attributes}]}]}]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (of_aiperf("many"), "line 1: prompt_tokens is 'many', not a whole number"),
        (of_aiperf({"unit": "tokens"}), "line 1: prompt_tokens is missing"),
        (of_spans({"boolValue": True}), "span 1: prompt_tokens is {'boolValue': True}, not a whole number"),
        (of_spans({}), "span 1: prompt_tokens is {}, not a whole number"),
        (of_spans({"intValue": "-1"}), "span 1: prompt_tokens is '-1', not a whole number"),
        ([{}], "lacks a column prompt_tokens; it has none"),
    ],
)
def test_tokens_that_are_no_numbers_are_named(content, reason, tmp_path):
    """They are neither left out nor replaced by what a client counted."""
    with pytest.raises(StagemeterError, match=reason):
        read(saved(tmp_path / "log", content))


def test_seconds_and_truth_values_of_a_table_are_no_tokens(tmp_path):
    for values in (pandas.to_timedelta([9, 8]), pandas.to_datetime([9, 8]), [True, True]):
        pandas.DataFrame({"prompt_tokens": values, "output_tokens": [2, 2]}).to_parquet(tmp_path / "log")
        with pytest.raises(StagemeterError, match="line 1: prompt_tokens is "):
            read(tmp_path / "log")


QWEN = "qwen2.5-vl-7b"


def counted_in_guidellm(folder):
    report = json.loads((RECORDED / "guidellm.json").read_text(encoding="utf-8"))
    asked = report["benchmarks"][0]["requests"]["successful"]
    for stats in asked:
        stats["prompt_tokens"] += 2000
    asked[1]["input_metrics"]["image_count"] = 2
    return saved(folder / "log", report), 2


def counted_in_aiperf(folder):
    lines = (RECORDED / "aiperf.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[1])
    record["metrics"]["num_images"] = {"value": 1, "unit": "images"}
    return saved(folder / "log", "\n".join([*lines, json.dumps(record)])), len(lines) + 1


def counted_in_csv(folder):
    return saved(folder / "log", "prompt_tokens,output_tokens,image_count\n9,3,0\n2600,5,3\n9,4,\n"), 3


@pytest.mark.parametrize("write", [counted_in_guidellm, counted_in_aiperf, counted_in_csv])
def test_pictures_that_are_counted_have_the_size_that_is_given(write, tmp_path):
    """They cost what pictures cost of which the log says the sizes."""
    log, place = write(tmp_path)
    found = analyze_requests(AnalysisConfig(model=QWEN, image_w=448, image_h=336), log, tmp_path / "out")
    number = {"guidellm": 2, "aiperf": 1, "csv": 3}[write.__name__.rpartition("_")[2]]
    assert found["pages"] == number
    assert "the log counts pictures without their sizes: each has 448 x 336 pixels" in found["notes"]
    rows = "".join(
        f"{prompt},{cached},{output},{' '.join(['448x336'] * number) if line == place else ''}\n"
        for line, prompt, cached, output in read(log)[1]
    )
    table = saved(tmp_path / "table", f"prompt_tokens,cached_tokens,output_tokens,image_sizes\n{rows}")
    sized = analyze_requests(AnalysisConfig(model=QWEN), table, tmp_path / "out")
    assert (found["stages"], found["groups"]) == (sized["stages"], sized["groups"])
    with pytest.raises(
        StagemeterError, match=f"{place}: has a picture, and the log does not say its size. Give --page"
    ):
        analyze_requests(AnalysisConfig(model=QWEN), log, tmp_path / "out")
    with pytest.raises(StagemeterError, match=f"{place}: has a picture, and llama-3.1-8b reads text alone"):
        analyze_requests(AnalysisConfig(model="llama-3.1-8b"), log, tmp_path / "out")


def test_logs_that_count_no_picture_need_no_size(tmp_path):
    for name in ("guidellm.json", "aiperf.jsonl"):
        assert analyze_requests(AnalysisConfig(model=QWEN), RECORDED / name, tmp_path / "out")["pages"] == 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("900,5,2,600x800", "line 2: image_count is 2, and there are sizes of 1 picture"),
        ("900,5,1,", "line 2: image_count is 1, and there are sizes of no pictures"),
        ("900,5,-1,600x800", "line 2: image_count is -1, not a whole number from 0"),
        ("900,5,,600x800", None),
        ("900,5,1,600x800", None),
    ],
)
def test_count_beside_sizes_is_their_number(row, reason, tmp_path):
    log = saved(tmp_path / "log", f"prompt_tokens,output_tokens,image_count,image_sizes\n{row}\n")
    if reason is None:
        assert analyze_requests(AnalysisConfig(model=QWEN), log, tmp_path / "out")["pages"] == 1
        return
    with pytest.raises(StagemeterError, match=reason):
        analyze_requests(AnalysisConfig(model=QWEN), log, tmp_path / "out")


def test_several_pages_are_no_size_of_those_that_a_log_counts(tmp_path):
    log, _ = counted_in_csv(tmp_path)
    config = AnalysisConfig(model=QWEN, image_w=448, image_h=336, images_per_request=2)
    with pytest.raises(StagemeterError, match="says how many pictures each request has"):
        analyze_requests(config, log, tmp_path / "out")


def test_records_of_aiperf():
    failed = [(4, "Service Unavailable"), (5, "was cancelled")]
    notes = [
        "1 requests of the warm-up are left out",
        "some lengths are those of the client's tokenizer, since the server reported none",
    ]
    rows = [(2, 560, 512, 32), (3, 1024, 0, 128)]
    assert read(RECORDED / "aiperf.jsonl") == ("AIPerf", rows, failed, [], notes)
