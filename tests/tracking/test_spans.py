"""The span processor: real traces in a real store, of calls that a stub of a server answers."""

import base64
import io
import json
import logging
from pathlib import Path

import mlflow
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image
from stub_server import stub_server, usage

import stagemeter
from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.application.requests import analyze_requests

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "analysis" / "recorded_requests" / "qwen2_5_vl.jsonl"
QWEN = str(ROOT / "utilization" / "serving" / "recorded" / "qwen2_5_vl.config.json")
LLAMA = "llama-3.1-8b"
TOTAL = "stagemeter.flops.total"


@pytest.fixture(autouse=True)
def tracing(experiment):
    """Trace into an experiment of the test's own; return its traces, newest first: ``tracing()``."""
    mlflow.set_experiment(experiment)
    yield lambda: mlflow.search_traces(return_type="list", flush=True)
    mlflow.openai.autolog(disable=True)
    mlflow.tracing.reset()


@pytest.fixture
def process():
    """Set the processor: ``process("llama-3.1-8b", served_as="m")``."""
    with mlflow.tracing.configure(span_processors=[]):
        yield lambda *models, **options: mlflow.tracing.configure(
            span_processors=[stagemeter.trace_processor(model, **options) for model in models]
        )


def call(tokens=(900, 5), kind="CHAT_MODEL", model="m", inputs=None, cached=0, **attributes):
    """Trace a call without a server."""
    with mlflow.start_span("call", span_type=kind) as span:
        span.set_inputs(inputs or {"messages": []})
        if tokens is not None:
            prompt, output = tokens
            used = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}
            span.set_attribute(
                "mlflow.chat.tokenUsage", used | ({} if cached is None else {"cache_read_input_tokens": cached})
            )
        span.set_attributes({"mlflow.llm.model": model, **attributes})


def address_of(size):
    data = io.BytesIO()
    Image.new("RGB", size).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def message(*sizes):
    pictures = [{"type": "image_url", "image_url": {"url": address_of(size)}} for size in sizes]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": "Read."}]}]


@pytest.mark.parametrize("extract", ["true", "false"])
def test_calls_cost_what_a_log_of_them_costs(process, tracing, tmp_path, monkeypatch, extract):
    # MLflow keeps pictures as attachments, or in the inputs.
    monkeypatch.setenv("MLFLOW_TRACE_EXTRACT_ATTACHMENTS", extract)
    lines = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    # A usage does not say which pictures were encoded before.
    requests = [{name: value for name, value in line.items() if name != "image_ids"} for line in lines]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{json.dumps(request)}\n" for request in requests), encoding="utf-8")
    truth = analyze_requests(AnalysisConfig(model=QWEN, max_pixels=1_003_520), log, tmp_path)
    mlflow.openai.autolog()
    process(QWEN, served_as="qwen", max_pixels=1_003_520)
    with (
        stub_server([request["usage"] for request in requests]) as address,
        OpenAI(base_url=address, api_key="-") as client,
    ):
        for request in requests:
            sizes = [(image["width"], image["height"]) for image in request["images"]]
            client.chat.completions.create(model="qwen", messages=message(*sizes))
    spans = [span for trace in tracing() for span in trace.data.spans]
    assert len(spans) == len(requests) > 5
    for stage, costs in [*truth["stages"].items(), ("total", truth["total"])]:
        for kind in ("flops", "flops_causal"):
            assert sum(span.attributes.get(f"stagemeter.{kind}.{stage}", 0) for span in spans) == costs[kind]
    assert sum(int(trace.info.tags["stagemeter.flops"]) for trace in tracing()) == truth["total"]["flops"]
    assert not any("stagemeter.missing" in span.attributes for span in spans)


def test_share_and_price_of_a_call_and_sums_of_the_trace(process, tracing):
    mlflow.openai.autolog()
    process(LLAMA, served_as="m", device="H100-SXM", devices=2, price_per_hour=3, concurrency=4)
    with (
        stub_server([usage(900, 5, cached_tokens=800), usage(400, 7)], 0.05) as address,
        OpenAI(base_url=address, api_key="-") as client,
        mlflow.start_span("application"),
    ):
        client.chat.completions.create(model="m", messages=message())
        options = {"stream": True, "stream_options": {"include_usage": True}}
        assert list(client.chat.completions.create(model="m", messages=message(), **options))
    (trace,) = tracing()
    spans = trace.search_spans(span_type="CHAT_MODEL")
    report = estimate_model(describe_model(LLAMA), AnalysisConfig(seq_len=900, cached_tokens=800, new_tokens=5))
    assert spans[0].attributes["stagemeter.flops.prefill"] == report["stages"]["prefill"]["flops"]
    assert spans[0].attributes["stagemeter.flops_causal.decode"] == report["stages"]["decode"]["flops_causal_total"]
    assert trace.info.tags["stagemeter.flops"] == str(sum(span.attributes[TOTAL] for span in spans))
    costs = [span.attributes["mlflow.llm.cost"] for span in spans]
    for span, cost in zip(spans, costs, strict=True):
        seconds = 1e-9 * (span.end_time_ns - span.start_time_ns)
        counted = cost["total_cost"] * 3600 * 4 / 3 / 2
        # The processor ran just before the span ended.
        assert 0.05 < counted <= seconds < counted + 0.05
        assert span.attributes["stagemeter.mfu_share"] == pytest.approx(span.attributes[TOTAL] / counted / 2 / 989e12)
        share = span.attributes["stagemeter.flops.decode"] / span.attributes[TOTAL]
        assert cost["output_cost"] == pytest.approx(share * cost["total_cost"])
    assert trace.info.cost == pytest.approx({name: sum(cost[name] for cost in costs) for name in costs[0]})
    assert "stagemeter.missing" not in spans[0].attributes
    assert spans[1].attributes["stagemeter.missing"] == [
        "cached tokens: the usage has none, and the whole prompt is counted as computed"
    ]


def test_a_call_inside_of_a_call_counts_once(process, tracing):
    process(LLAMA, served_as="m")
    with mlflow.start_span("chain", span_type="CHAIN"):
        with mlflow.start_span("outer", span_type="CHAT_MODEL") as outer:
            call()
            outer.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 900, "output_tokens": 5})
        call(kind="LLM")
        call(kind="EMBEDDING")
    (trace,) = tracing()
    counted = [span.attributes[TOTAL] for span in trace.data.spans if TOTAL in span.attributes]
    assert len(counted) == 3
    assert len(set(counted)) == 1
    assert trace.info.tags["stagemeter.flops"] == str(2 * counted[0])
    assert trace.info.tags["stagemeter"].startswith("26.1 TFLOPs, 2 of 2 calls: prefill 99")


def test_a_price_of_the_user_stays(process, tracing):
    process(LLAMA, served_as="m", price_per_hour=3)
    call(**{"mlflow.llm.cost": {"input_cost": 1.0, "output_cost": 2.0, "total_cost": 3.0}})
    assert tracing()[0].info.cost["total_cost"] == 3


def picture(**source):
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": source}]}]}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"tokens": None}, "token usage: the call has none"),
        ({"inputs": {"n": 3}}, "answers: n is 3"),
        (
            {"inputs": picture(url="https://example.org/a.png")},
            "pictures: the server fetches a picture from example.org",
        ),
        ({"inputs": {"messages": message((60, 80))}, "tokens": (3, 1)}, "request: prompt_tokens are too few"),
        ({"inputs": {"messages": message((640, 640))}, "cached": 16}, "request: cached_tokens are a part of the page"),
    ],
    ids=["usage", "answers", "remote", "prompt", "cache"],
)
def test_what_is_missing_is_named_and_said_once(process, tracing, caplog, told, said):
    process(QWEN, served_as="m")
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        call(**told)
    for trace in tracing():
        (span,) = trace.data.spans
        assert TOTAL not in span.attributes
        (missing,) = span.attributes["stagemeter.missing"]
        assert missing.startswith(said)
        assert trace.info.tags["stagemeter.missing"] == missing
    (warning,) = [record for record in caplog.records if record.name.startswith("stagemeter")]
    assert said in warning.getMessage()
    assert not [record for record in caplog.records if "Span processor" in record.getMessage()]


def test_the_servers_limits_of_pages_are_checked(process, tracing, caplog):
    # The server's processor took fewer pixels than the published one.
    process(QWEN, served_as="m")
    mlflow.openai.autolog()
    answers = [usage(1300, 8, cached_tokens=0, multimodal_tokens={"image": 1260})]
    with stub_server(answers) as address, OpenAI(base_url=address, api_key="-") as client:
        client.chat.completions.create(model="m", messages=message((1654, 2339)))
    (missing,) = tracing()[0].data.spans[0].attributes["stagemeter.missing"]
    assert missing == (
        "pictures: the server counts 1260 image tokens of 1654x2339 pixels, and 4956 follow from the limits of pages"
    )
    assert "Give the server's limits, such as max_pixels" in caplog.text


def test_a_failed_call_is_named_without_a_warning(process, tracing, caplog):
    process(LLAMA, served_as="m")
    mlflow.openai.autolog()
    with (
        stub_server([None]) as address,
        OpenAI(base_url=address, api_key="-", max_retries=0) as client,
        pytest.raises(BadRequestError),
    ):
        client.chat.completions.create(model="m", messages=message())
    (span,) = tracing()[0].data.spans
    assert span.attributes["stagemeter.missing"] == ["token usage: the call failed"]
    assert "trace_processor" not in caplog.text


def test_other_models_are_left_alone(process, tracing, caplog):
    process(LLAMA, "qwen3-8b")
    call(model="meta-llama/Llama-3.1-8B")
    call(model="qwen/QWEN3-8B")
    call(model="gpt-4o")
    tagged = [trace.info.tags.get("stagemeter.flops") for trace in reversed(tracing())]
    assert tagged[0] is not None
    assert tagged[1] not in (None, tagged[0])
    assert tagged[2] is None
    assert "calls of 'gpt-4o' are left alone: llama-3.1-8b is counted. Give served_as='gpt-4o' if" in caplog.text


def test_a_call_that_is_too_fast_for_its_device(process, tracing, caplog):
    process(LLAMA, served_as="m", peak_tflops=1)
    call((100_000, 5))
    (span,) = tracing()[0].data.spans
    assert span.attributes["stagemeter.mfu_share_causal"] > 1
    assert span.attributes["stagemeter.missing"][0].startswith("device: the call took 1/")
    assert "Check the device, the number of devices and the model" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "H101"}, "device: 'H101' is unknown"),
        ({"device": "H100-SXM", "peak_tflops": 9}, "exclude each other"),
        ({"devices": 0}, "devices: 0 cannot serve a model"),
        ({"price_per_hour": -1}, "price_per_hour: -1 cannot be used"),
        ({"price_per_hour": 1, "concurrency": 0.5}, "concurrency: 0.5 cannot be used"),
        ({"concurrency": 2}, "concurrency: 2 divides a price, and there is none"),
        ({"new_tokens": 4}, "new_tokens 4: each request says its own"),
        ({"adapter": "x"}, "adapter x: a call counts no adapters"),
    ],
)
def test_settings_that_cannot_be_used(options, said):
    with pytest.raises(StagemeterError, match=said):
        stagemeter.trace_processor(LLAMA, **options)
