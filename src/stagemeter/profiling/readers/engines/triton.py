"""The page of Triton Inference Server, with any backend.

Sources: Triton, ``docs/user_guide/metrics.md`` ("Inference Request Metrics"), and TensorRT-LLM,
``triton_backend/inflight_batcher_llm/src/custom_metrics_reporter/`` for ``nv_llm_*``.

- ``nv_inference_count``: inferences without those that the response cache answered; a batch of n counts as n.
- ``nv_inference_compute_infer_duration_us``: time of the whole request in the backend, prefill and decoding together.
- ``nv_llm_input_token_len`` and ``nv_llm_output_token_len``, of the TensorRT-LLM backend alone: histograms of tokens.
- ``nv_trt_llm_*`` are gauges of the moment, which say nothing of the time between two pages.
- No cached tokens, no time to the first token (``nv_inference_first_response_histogram_ms`` is experimental, and of the
  first part of an answer that is streamed), no estimate.

Models have the label ``model``, each step of an ensemble, too. vLLM's backend adds vLLM's own metrics, which are read
instead.
"""

from stagemeter.profiling.readers.engines.table import Engine, Mean, Tokens

_REQUESTS, _TIME = "nv_inference_count", "nv_inference_compute_infer_duration_us"

TRITON = Engine(
    name="Triton",
    prefixes=("nv_inference_", "nv_llm_", "nv_trt_llm_"),
    server="Give the /metrics of a Triton server, port 8002 by default",
    required=(_REQUESTS, _TIME),
    requests=_REQUESTS,
    prompt=Tokens("nv_llm_input_token_len"),
    new=Tokens("nv_llm_output_token_len"),
    request=((Mean(_TIME, seconds=1e-6),),),
    clock="Triton's counters of microseconds (wall time)",
)
