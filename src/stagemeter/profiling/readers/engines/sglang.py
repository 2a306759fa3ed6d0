"""SGLang's page (``--enable-metrics``).

Sources: sglang 0.5.23, ``srt/observability/metrics_collector.py`` (names, and lines 2092-2151 for what a finished
request adds), ``srt/observability/req_time_stats.py`` (lines 810-890, the intervals), and
``srt/managers/scheduler_components/metrics_reporter.py`` (lines 550-700, the estimates).

- ``sglang:prompt_tokens_total``, ``sglang:generation_tokens_total``, ``sglang:cached_tokens_total`` by
  ``cache_source``, ``sglang:num_requests_total`` and the histograms of tokens: of finished requests, aborted ones
  included.
- ``sglang:per_stage_req_latency_seconds``, stage ``prefill_forward``: from the first forward pass of a prompt to the
  end of its last chunk, vision encoder included.
- ``sglang:e2e_request_latency_seconds`` and ``sglang:time_to_first_token_seconds``, from the arrival on: their
  difference is the decoding.
- ``sglang:cuda_graph_passes_total`` by ``mode``: forward passes, with CUDA graphs and without. Earlier versions count
  those of decoding alone.
- ``sglang:estimated_flops_per_gpu_total`` (``--enable-mfu-metrics``).

The server's counters have the label ``model_name``; those of its schedulers, also ``tp_rank``, ``pp_rank``,
``moe_ep_rank`` and ``dp_rank``. Each replica of ``dp_rank`` has devices of its own.
"""

from stagemeter.core.stage_names import DECODE, FORWARD
from stagemeter.profiling.readers.engines.table import Computed, Engine, Speculation, Tokens, mean

_REQUESTS = "sglang:num_requests_total"
_PROMPT, _NEW = "sglang:prompt_tokens_total", "sglang:generation_tokens_total"
_CACHED = "sglang:cached_tokens_total"
_FIRST_TOKEN = mean("sglang:time_to_first_token_seconds")

SGLANG = Engine(
    name="SGLang",
    prefixes=("sglang:",),
    server="Give the /metrics of an SGLang server that was started with --enable-metrics and has answered a request",
    required=(_REQUESTS, _PROMPT, _NEW),
    requests=_REQUESTS,
    prompt=Tokens("sglang:prompt_tokens_histogram", ((_PROMPT,),), of_finished=True),
    new=Tokens("sglang:generation_tokens_histogram", ((_NEW,),), of_finished=True),
    computed=(
        Computed("sglang:uncached_prompt_tokens_histogram", "histogram"),
        Computed(_CACHED, "cached", absent_until_used=True),
    ),
    forward=(
        (mean("sglang:per_stage_req_latency_seconds", "prefill_forward"),),
        (_FIRST_TOKEN, mean("sglang:queue_time_seconds")),
    ),
    decode=((mean("sglang:e2e_request_latency_seconds"), _FIRST_TOKEN),),
    forward_note=(
        f"{FORWARD} is SGLang's stage prefill_forward, from the first forward pass of a prompt to its last, with the "
        "vision encoder inside; without that stage, it is the time to the first token less that in the queue"
    ),
    decode_note=f"{DECODE} is the mean time of whole requests less the mean time to the first token",
    clock="SGLang's histograms of requests (wall time)",
    counters={"prefix_hits": _CACHED},
    passes="sglang:cuda_graph_passes_total",
    estimated_flops="sglang:estimated_flops_per_gpu_total",
    estimated_bytes=("sglang:estimated_read_bytes_per_gpu_total", "sglang:estimated_write_bytes_per_gpu_total"),
    estimated_as="flops_causal",
    estimate=(
        "SGLang estimates projections of attention, visible query-key pairs and the feed-forward network of the "
        "language model, without output head, experts' router and vision encoder (sglang 0.5.23, "
        "metrics_reporter.py). A mixture of experts counts as one network of intermediate_size, sliding windows count "
        "as full attention, and with tensor parallelism each GPU counts the whole feed-forward network"
    ),
    speculation=Speculation("sglang:spec_verify_calls_total"),
    parts=("le", "stage"),
    engine_labels=("dp_rank",),
    ranks=("pp_rank", "tp_rank", "moe_ep_rank"),
    appear_when_used=True,
    frontend=True,
)
