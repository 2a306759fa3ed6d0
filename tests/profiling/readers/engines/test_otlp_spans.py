"""Spans that a real vLLM server sent, as a profile and as a log of requests."""

import json
from pathlib import Path

import pytest

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.log import open_log
from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers import read_profile, read_scrape_files

SPANS = Path(__file__).parent / "pages" / "vllm-spans.json"
RECORDED = Path(__file__).parents[3] / "utilization" / "serving" / "recorded"
SERVED = json.loads((RECORDED / "scenarios.json").read_text())["otlp_traces"]["requests"]


def page():
    return read_scrape_files(RECORDED / "otlp_traces.before.txt", RECORDED / "otlp_traces.after.txt")


def test_times_and_lengths_are_those_of_the_servers_page():
    profile = read_profile(SPANS, steps=7)
    for stage in ("forward", "decode", "decode_total"):
        assert profile.times_ms[stage] == (pytest.approx(page().times_ms[stage][0], rel=1e-9),)
    lengths = profile.lengths
    assert (lengths.requests, lengths.prompt.total, lengths.new.total) == (6, 2370, 48)
    # A bucket for each length, so that sums of squares are exact.
    assert {(part.least, part.most) for part in lengths.prompt.buckets} == {(p, p) for p, _, _ in SERVED}
    assert profile.source == "OpenTelemetry spans"
    assert profile.metrics["engine/seconds"] == pytest.approx(2.008556032)


def test_cached_tokens_are_named_as_missing():
    """The page has them: 640 of the second prompt."""
    profile = read_profile(SPANS, steps=7)
    assert profile.lengths.cached == 0
    assert not profile.lengths.computed_known
    assert page().lengths.cached == 640
    assert any(note.startswith("cached tokens: no counter in the spans") for note in profile.notes)


def test_spans_are_a_log_of_requests():
    bad = BadLines(SPANS, skip=False)
    log = open_log(SPANS, bad)
    assert log.format == "OpenTelemetry"
    assert log.columns == ("prompt_tokens", "output_tokens")
    (requests,) = log.batches
    # Requests that ran at once ended in another order.
    found = sorted(zip(requests.prompt.tolist(), requests.output.tolist(), strict=True))
    assert found == sorted((prompt, new) for prompt, _, new in SERVED)


def test_an_export_of_one_document_a_line_is_the_same(tmp_path):
    document = json.loads(SPANS.read_text())
    file = tmp_path / "spans.jsonl"
    file.write_text("".join(json.dumps({"resourceSpans": [part]}) + "\n" for part in document["resourceSpans"]))
    assert read_profile(file, steps=7).times_ms == read_profile(SPANS, steps=7).times_ms


def changed(tmp_path, change) -> Path:
    """The export with every span changed."""
    document = json.loads(SPANS.read_text())
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                change(span)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(document))
    return file


def test_cached_tokens_of_the_conventions_are_read(tmp_path):
    def cache(span):
        span["attributes"].append({"key": "gen_ai.usage.cache_read.input_tokens", "value": {"intValue": "40"}})

    profile = read_profile(changed(tmp_path, cache), steps=7)
    assert profile.lengths.cached == 6 * 40


def drop(key):
    return lambda span: span.update(attributes=[part for part in span["attributes"] if key not in part["key"]])


def spoil(span):
    for part in span["attributes"]:
        if part["key"].endswith("time_in_model_prefill"):
            part["value"] = {"doubleValue": -1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("gen_ai.usage"), "no span has tokens and times"),
        (drop("time_in_model"), "no span has tokens and times"),
        (spoil, "a span has .*-1.*, which is no number of tokens or seconds"),
    ],
)
def test_spans_that_say_nothing_are_named(tmp_path, change, message):
    with pytest.raises(StagemeterError, match=message):
        read_profile(changed(tmp_path, change), steps=7)


def test_an_export_that_is_cut_off_is_named(tmp_path):
    file = tmp_path / "cut.json"
    file.write_text(SPANS.read_text()[:5000])
    with pytest.raises(StagemeterError, match="cut off"):
        read_profile(file, steps=7)


def span(name, within, **tokens):
    attributes = [{"key": f"gen_ai.usage.{key}", "value": {"intValue": str(value)}} for key, value in tokens.items()]
    return {"spanId": name, "parentSpanId": within, "attributes": attributes}


def costed(tmp_path, *spans):
    file = tmp_path / "spans.json"
    # One document a line, as a collector writes them: a span ends before the one that it is within.
    lines = ({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]} for one in spans)
    file.write_text("\n".join(map(json.dumps, lines)))
    bad = BadLines(file, skip=False)
    return sum(int(batch.prompt.sum()) for batch in open_log(file, bad).batches)


def test_tokens_of_spans_within_others_would_count_twice(tmp_path):
    tokens = {"input_tokens": 30, "output_tokens": 6}
    engine = span("000000000000000c", "000000000000000b", **tokens)
    call, agent = span("000000000000000b", "000000000000000a"), span("000000000000000a", "", **tokens)
    with pytest.raises(StagemeterError, match=r"numbers of tokens, 1 are within others that have them"):
        costed(tmp_path, engine, call, agent)


@pytest.mark.parametrize("other", ["", "000000000000000a", "000000000000000d"])
def test_spans_within_ones_without_tokens_are_requests(other, tmp_path):
    """A span of an agent, its calls, and one that names itself, or a span of another export, as what it is within."""
    tokens = {"input_tokens": 30, "output_tokens": 6}
    calls = [span(f"{number:016x}", "000000000000000a", **tokens) for number in (1, 2)]
    assert costed(tmp_path, *calls, span("000000000000000a", other)) == 60
