"""``stagemeter traces``: what stored traces cost, and a log of requests of them."""

import json

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracing.utils import SpanAggregationNode, aggregate_usage_from_span_nodes
from openai import OpenAI
from stub_server import stub_server
from test_spans import LLAMA, QWEN, RECORDED, call, message

from stagemeter import AnalysisConfig, describe_model, estimate_model
from stagemeter.application.requests import analyze_requests
from stagemeter.tracking import traces
from stagemeter.utilization.call_totals import busy_seconds
from stagemeter.utilization.calls import outermost


@pytest.fixture(autouse=True)
def tracing(experiment):
    mlflow.set_experiment(experiment)
    yield
    mlflow.openai.autolog(disable=True)
    mlflow.tracing.reset()


@pytest.fixture
def traced(command, experiment):
    """Run ``stagemeter traces``: its document, and what it says besides."""

    def run(*arguments, code=0):
        mlflow.flush_trace_async_logging()
        ended, out, err = command("traces", "--experiment", experiment, "--json", *arguments)
        assert ended == code, err
        return (json.loads(out) if code == 0 else None), err

    return run


def stored(start, end, tokens=(900, 5), model="m"):
    """Store a call with given times, in seconds."""
    span = mlflow.start_span_no_context("call", span_type="LLM", start_time_ns=int(start * 1e9))
    prompt, output = tokens
    span.set_attribute(
        "mlflow.chat.tokenUsage", {"input_tokens": prompt, "output_tokens": output, "cache_read_input_tokens": 0}
    )
    span.set_attribute("mlflow.llm.model", model)
    span.end(end_time_ns=int(end * 1e9))


def test_stored_calls_cost_what_their_log_costs(traced, experiment, tmp_path):
    lines = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    requests = [line for line in lines if len(line["images"]) < 2]
    mlflow.openai.autolog()
    with (
        stub_server([request["usage"] for request in requests]) as address,
        OpenAI(base_url=address, api_key="-") as client,
    ):
        for request in requests:
            sizes = [(image["width"], image["height"]) for image in request["images"]]
            client.chat.completions.create(model="qwen", messages=message(*sizes))
    log = tmp_path / "log.jsonl"
    asked = ("--model", QWEN, "--served-as", "qwen", "--max-pixels", 1_003_520)
    document, _ = traced(*asked, "--out", log)
    truth = analyze_requests(AnalysisConfig(model=QWEN, max_pixels=1_003_520), log, tmp_path)
    assert {name: document[name] for name in ("stages", "total", "prompt_tokens", "output_tokens")} == {
        name: truth[name] for name in ("stages", "total", "prompt_tokens", "output_tokens")
    }
    assert document["flops_per_call"] == truth["flops_per_request"]
    assert document["calls"] == document["counted"] == truth["requests"] == len(requests)
    assert "max_pixels 1,003,520, from --max-pixels" in str(document["notes"])
    sizes = [json.loads(line)["image_sizes"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert sizes == [[[one["width"], one["height"]] for one in request["images"]] for request in requests]
    tags = [trace.info.tags for trace in mlflow.search_traces(return_type="list")]
    assert sum(int(tag["stagemeter.flops"]) for tag in tags) == truth["total"]["flops"]


def test_time_and_price_of_calls_that_overlap(traced, monkeypatch):
    monkeypatch.setattr(traces, "_PAGE", 2)
    for start, end in ((100, 104), (102, 106), (103, 104), (200, 201)):
        stored(start, end)
    stored(300, 310, model="gpt-4o")
    asked = ("--model", LLAMA, "--served-as", "m", "--peak-tflops", 400, "--devices", 2)
    document, _ = traced(*asked, "--price-per-hour", 3.6, "--concurrency", 2)
    report = estimate_model(describe_model(LLAMA), AnalysisConfig(seq_len=900, new_tokens=5))
    assert document["total"]["flops"] == 4 * report["total"]["flops"]
    assert document["seconds_with_calls"] == pytest.approx(7)
    assert document["mean_concurrency"] == pytest.approx(10 / 7)
    assert document["mfu"] == pytest.approx(4 * report["total"]["flops"] / (7 * 2 * 400e12))
    assert document["cost"] == pytest.approx(10 * 2 * 3.6 / 3600 / 2)
    assert [(group["model"], group["calls"], group["counted"]) for group in document["groups"]] == [
        ("m", 4, 4),
        ("gpt-4o", 1, 0),
    ]
    assert document["notes"] == ["calls of gpt-4o are not counted: --served-as names those that are llama-3.1-8b"]
    costs = {trace.info.tags.get("stagemeter.cost") for trace in mlflow.search_traces(return_type="list")}
    assert costs == {"0.004", "0.001", None}
    # An age is as good as a date.
    later, _ = traced(*asked, "--since", "1970-01-01T00:03:20+00:00")
    assert later["counted"] == 1
    assert traced("--since", "9w")[0]["traces"] == 0
    assert traced("--model", LLAMA)[0]["counted"] == 0


def test_a_frame_without_usage_is_no_call(traced):
    with mlflow.start_span("frame", span_type="LLM"):
        call()
    with mlflow.start_span("lost", span_type="LLM"):
        pass
    call(inputs={"n": 2})
    document, _ = traced("--model", LLAMA, "--served-as", "m")
    assert [(group["span"], group["calls"], group["counted"]) for group in document["groups"]] == [
        ("call", 2, 1),
        ("lost", 1, 0),
    ]
    assert {one["kind"]: one["calls"] for one in document["missing"]} == {"token usage": 1, "answers": 1}
    assert len(document["dearest"]) == 1


def test_tables_of_tokens_and_of_costs(command, experiment):
    stored(100, 104)
    mlflow.flush_trace_async_logging()
    code, out, err = command("traces", "--experiment", experiment)
    assert (code, err) == (0, "")
    assert "note: no model is given: tokens are added, and no FLOPs are counted" in out
    assert "stagemeter.flops" not in mlflow.search_traces(return_type="list")[0].info.tags
    asked = ("--model", LLAMA, "--served-as", "m", "--device", "H100-SXM", "--price-per-hour", 2.5)
    code, out, err = command("traces", "--experiment", experiment, "--no-tags", *asked)
    assert (code, err) == (0, "")
    for line in (
        "4.000 s with calls, 1.00 open at a time on average",
        "MFU of 1 x H100-SXM in that time: 0.3 %, 0.3 % by visible pairs",
        "cost: 0.002778, 0.002778 a call",
    ):
        assert line in out.splitlines()
    assert "stagemeter.flops" not in mlflow.search_traces(return_type="list")[0].info.tags


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--experiment: missing"),
        (("--experiment", "nowhere"), "experiment 'nowhere': not in the MLflow store"),
        (("--experiment", "x", "--served-as", "m"), "--served-as: means nothing without a model"),
        (("--experiment", "x", "--since", "yesterday"), "'yesterday' is no time"),
        (("--experiment", "x", "--model", LLAMA, "--concurrency", 2), "--concurrency: 2 divides a price"),
        (("--experiment", "x", "--model", LLAMA, "--devices", 0), "--devices: 0 cannot serve a model"),
        (("--experiment", "x", "--out", "/proc/log"), "/proc: cannot be written to"),
    ],
)
def test_input_that_cannot_be_used(command, arguments, said):
    code, out, err = command("traces", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_a_log_is_written_whole_or_not_at_all(command, experiment, tmp_path, monkeypatch):
    stored(100, 104)
    mlflow.flush_trace_async_logging()

    def fail(*_: object) -> None:
        raise OSError("no more")

    monkeypatch.setattr("mlflow.MlflowClient.set_trace_tag", fail)
    log = tmp_path / "log.jsonl"
    code, _, err = command("traces", "--experiment", experiment, "--model", LLAMA, "--served-as", "m", "--out", log)
    assert code == 3
    assert "refused: no more" in err
    assert list(tmp_path.glob("log*")) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda one: (one[0], one[0] + one[1]))))
def test_seconds_with_calls(times):
    assert busy_seconds(times) == len({second for start, end in times for second in range(start, end)})


@given(st.lists(st.tuples(st.integers(-1, 11), st.booleans()), max_size=12))
def test_calls_count_once_as_in_mlflow(nodes):
    parents = {str(place): str(parent) if 0 <= parent < place else None for place, (parent, _) in enumerate(nodes)}
    counted = [str(place) for place, (_, has) in enumerate(nodes) if has]
    usage = {name: {"input_tokens": 1 << int(name), "output_tokens": 0, "total_tokens": 0} for name in counted}
    theirs = aggregate_usage_from_span_nodes(
        [SpanAggregationNode(name, parent, usage.get(name)) for name, parent in parents.items()]
    )
    kept, missing = outermost(parents, counted, parents.keys() - counted)
    assert sum(usage[name]["input_tokens"] for name in kept) == (theirs or {"input_tokens": 0})["input_tokens"]
    assert missing.isdisjoint(counted)
