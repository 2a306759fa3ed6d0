"""TensorRT-LLM's page: ``/prometheus/metrics`` of ``trtllm-serve``, with ``return_perf_metrics: true``.

Source: TensorRT-LLM, ``tensorrt_llm/metrics/collector.py`` (names; `log_request_metrics_dict`, what a finished request
adds) and ``tensorrt_llm/metrics/perf_utils.py`` (the intervals), as of commit 050f80d.

- ``trtllm_request_success_total`` by ``finished_reason``, ``trtllm_prompt_tokens_total`` (cached ones included),
  ``trtllm_generation_tokens_total`` and ``trtllm_prompt_cached_tokens_total``: of finished requests. Earlier
  versions have none of cached tokens, or none of tokens at all.
- ``trtllm_request_prefill_time_seconds``: from the first scheduling to the first token, and
  ``trtllm_request_decode_time_seconds``: from there to the last token. A request without such a time is not observed,
  so means are over all requests. Earlier versions have ``trtllm_time_to_first_token_seconds``,
  ``trtllm_request_queue_time_seconds`` and ``trtllm_e2e_request_latency_seconds`` alone.
- No lengths of single requests, and no estimate of FLOPs. Several answers to a prompt (``n`` above 1) count no new
  token.
"""

from stagemeter.core.stage_names import FORWARD
from stagemeter.profiling.readers.engines.table import Computed, Engine, Mean, Speculation, Tokens, mean

_REQUESTS = "trtllm_request_success_total"
_FIRST_TOKEN = mean("trtllm_time_to_first_token_seconds")

TENSORRT_LLM = Engine(
    name="TensorRT-LLM",
    prefixes=("trtllm_",),
    server="Start trtllm-serve with return_perf_metrics, and give its /prometheus/metrics after a request",
    required=(_REQUESTS,),
    requests=_REQUESTS,
    prompt=Tokens(counters=(("trtllm_prompt_tokens_total",),), of_finished=True),
    new=Tokens(counters=(("trtllm_generation_tokens_total",),), of_finished=True),
    computed=(Computed("trtllm_prompt_cached_tokens_total", "cached"),),
    forward=(
        (Mean("trtllm_request_prefill_time_seconds_sum"),),
        (_FIRST_TOKEN, mean("trtllm_request_queue_time_seconds")),
    ),
    decode=(
        (Mean("trtllm_request_decode_time_seconds_sum"),),
        (mean("trtllm_e2e_request_latency_seconds"), _FIRST_TOKEN),
    ),
    forward_note=(
        "TensorRT-LLM's prefill time is from scheduling to the first token, and the vision encoder runs inside of it: "
        f"both are {FORWARD} here"
    ),
    clock="TensorRT-LLM's histograms of requests (wall time)",
    counters={"prefix_hits": "trtllm_prompt_cached_tokens_total"},
    speculation=Speculation(
        draft_tokens="trtllm_spec_decode_num_draft_tokens_total",
        accepted_tokens="trtllm_spec_decode_num_accepted_tokens_total",
    ),
    appear_when_used=True,
)
