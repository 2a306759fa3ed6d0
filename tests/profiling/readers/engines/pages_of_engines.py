"""Pages as engines print them, of known requests. Names, labels and formats are those of their sources; times are made.

TensorRT-LLM: ``tensorrt_llm/metrics/collector.py``, commit 050f80d, with the same prometheus_client. llama.cpp: the
printing of ``tools/server/server-task.cpp`` in llama-cpp-python 0.3.36. Triton: ``docs/user_guide/metrics.md``, and
``nv_llm_*`` of TensorRT-LLM's ``custom_metrics_reporter.cc``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

#: Prompt, cached and new tokens.
Request = tuple[int, int, int]
REQUESTS: list[Request] = [(700, 640, 8), (50, 0, 12), (300, 0, 1)]
PAGES = Path(__file__).parent / "pages"
_BUCKETS = (0.1, 1.0, 10.0)


def sglang(page: str) -> str:
    return (PAGES / f"sglang.{page}.txt").read_text()


def prefill_seconds(request: Request) -> float:
    prompt, cached, _ = request
    return 0.02 + 1e-4 * (prompt - cached)


def decode_seconds(request: Request) -> float:
    return 0.01 * (request[2] - 1)


def tensorrt_llm(requests: Iterable[Request], tokens: bool = True, cached: bool = True, phases: bool = True) -> str:
    """What /prometheus/metrics answers; earlier versions count no cached tokens, no tokens, and no phases."""
    registry, labels = CollectorRegistry(), {"model_name": "llama", "engine_type": "trtllm"}

    def histogram(name: str) -> Histogram:
        return Histogram(f"trtllm_{name}", name, labelnames=list(labels), buckets=_BUCKETS, registry=registry)

    def counter(name: str, *more: str) -> Counter:
        return Counter(f"trtllm_{name}", name, labelnames=[*labels, *more], registry=registry)

    success = counter("request_success_total", "finished_reason")
    whole, first, queue = (
        histogram(name)
        for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds", "request_queue_time_seconds")
    )
    if phases:
        prefill, decode = (histogram(f"request_{name}_time_seconds") for name in ("prefill", "decode"))
    if tokens:
        prompts, answers = counter("prompt_tokens_total"), counter("generation_tokens_total")
    if cached:
        hits = counter("prompt_cached_tokens_total")
        hits.labels(**labels)
    for request in requests:
        prompt, from_cache, new = request
        times = 0.001, prefill_seconds(request), decode_seconds(request)
        success.labels(**labels, finished_reason="length" if new > 1 else "stop").inc()
        whole.labels(**labels).observe(sum(times))
        queue.labels(**labels).observe(times[0])
        first.labels(**labels).observe(times[0] + times[1])
        if phases:
            prefill.labels(**labels).observe(times[1])
            # log_request_metrics_dict leaves out times of zero.
            if times[2]:
                decode.labels(**labels).observe(times[2])
        if tokens:
            prompts.labels(**labels).inc(prompt)
            answers.labels(**labels).inc(new)
        if cached:
            hits.labels(**labels).inc(from_cache)
    return generate_latest(registry).decode()


def llama_cpp(requests: Iterable[Request], cached: bool = True) -> str:
    """What /metrics answers. C++ prints six significant digits."""
    served = list(requests)
    counters = {
        "prompt_tokens_total": sum(prompt - from_cache for prompt, from_cache, _ in served),
        "prompt_tokens_cached_total": sum(from_cache for _, from_cache, _ in served),
        "prompt_seconds_total": sum(map(prefill_seconds, served)),
        "tokens_predicted_total": sum(new for _, _, new in served),
        "tokens_predicted_seconds_total": sum(map(decode_seconds, served)),
        "n_decode_total": sum(new for _, _, new in served),
    }
    if not cached:
        del counters["prompt_tokens_cached_total"]
    gauges = {"requests_processing": 0.0, "n_busy_slots_per_decode": 1.0}
    return "".join(
        f"# HELP llamacpp:{name} help\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value:g}\n"
        for kind, items in (("counter", counters), ("gauge", gauges))
        for name, value in items.items()
    )


def triton(requests: Iterable[Request], models: Iterable[str] = ("tensorrt_llm",), tokens: bool = True) -> str:
    """What port 8002 answers, of the TensorRT-LLM backend or, without tokens, of another one."""
    served, lines = list(requests), []
    micros = round(1e6 * sum(prefill_seconds(request) + decode_seconds(request) for request in served))
    for model in models:
        labels = f'model="{model}",version="1"'
        for name, value in (
            ("nv_inference_request_success", len(served)),
            ("nv_inference_count", len(served)),
            ("nv_inference_request_duration_us", micros + 1000 * len(served)),
            ("nv_inference_queue_duration_us", 1000 * len(served)),
            ("nv_inference_compute_infer_duration_us", micros),
        ):
            lines += [f"# TYPE {name} counter", f"{name}{{{labels}}} {value}"]
        for name, kind, place in (
            ("nv_llm_input_token_len", "total_input_tokens", 0),
            ("nv_llm_output_token_len", "total_output_tokens", 2),
        ):
            lengths = [request[place] for request in served]
            of = f'{{model="{model}",response_metric_type="{kind}",version="1"'
            if tokens:
                lines += [
                    f"# TYPE {name} histogram",
                    f"{name}_count{of}}} {len(lengths)}",
                    f"{name}_sum{of}}} {sum(lengths)}",
                ]
                for end in (10, 50, 100, 500, 1000, float("inf")):
                    below = sum(length <= end for length in lengths)
                    lines.append(f'{name}_bucket{of},le="{"+Inf" if end == float("inf") else end}"}} {below}')
    return "\n".join(lines) + "\n"
