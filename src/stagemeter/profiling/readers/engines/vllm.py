"""vLLM's page.

The metrics of ``vllm/v1/metrics/`` (``loggers.py`` has the names, ``stats.py`` the intervals, ``perf.py`` the
estimates; "Production Metrics" in vLLM's documentation lists them):

- ``vllm:request_prefill_time_seconds``, a histogram over finished requests: from when a request was first scheduled to
  its first new token, preemptions included. A vision-language model's encoder runs in between.
- ``vllm:request_decode_time_seconds``, the same: from the first new token to the last, so ``tokens - 1`` steps.
- ``vllm:request_prompt_tokens`` and ``vllm:request_generation_tokens``, histograms over the same requests. Prompts
  include tokens from a cache.
- ``vllm:request_prefill_kv_computed_tokens``, the same without tokens from a cache;
  ``vllm:prompt_tokens_by_source_total`` (``local_compute`` is the rest), ``vllm:prompt_tokens_cached_total`` and
  ``vllm:prefix_cache_hits_total`` count them over all processed requests.
- ``vllm:prompt_tokens_total`` and ``vllm:generation_tokens_total``, counters of processed tokens, unfinished requests
  included. They replace missing histograms of tokens.
- ``vllm:estimated_flops_per_gpu_total`` (with ``--enable-mfu-metrics``): vLLM's own closed form: attention, FFN and
  unembedding of the language model, per GPU. No vision encoder; tokens from the prefix cache left out.
- ``vllm:spec_decode_num_drafts_total``, ``..._draft_tokens_total``, ``..._accepted_tokens_total``: verification passes
  of speculative decoding, what they computed beside one token each, and what of it they kept.
- ``vllm:iteration_tokens_total``, a histogram: its count is of steps that put out a token. Steps that compute chunks
  before a prompt's last and nothing else are missing. Each of several API servers counts the steps with requests of its
  own. Their page lacks ``process_start_time_seconds``, which Prometheus' client gives for one process alone.
- ``vllm:mm_cache_queries_total`` and ``vllm:mm_cache_hits_total``: pictures looked up in the cache of processed inputs.

All have the label ``model_name`` and, in recent versions, ``engine``. The counters of a model's engines add up; each
engine has its own devices.
"""

from stagemeter.core.stage_names import FORWARD
from stagemeter.profiling.readers.engines.table import Computed, Engine, Mean, Speculation, Tokens

_PREFILL, _DECODE = "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds"
_WRITTEN = "vllm:estimated_write_bytes_per_gpu_total"
_PROMPT, _NEW = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
_BY_SOURCE = "vllm:prompt_tokens_by_source_total"

VLLM = Engine(
    name="vLLM",
    prefixes=("vllm:",),
    server="Give the /metrics of a vLLM server",
    required=(f"{_PREFILL}_sum", f"{_PREFILL}_count", f"{_DECODE}_sum", f"{_DECODE}_count", _PROMPT, _NEW),
    requests=f"{_PREFILL}_count",
    prompt=Tokens("vllm:request_prompt_tokens", ((_PROMPT,),)),
    new=Tokens("vllm:request_generation_tokens", ((_NEW,),)),
    computed=(
        Computed("vllm:request_prefill_kv_computed_tokens", "histogram"),
        Computed(_BY_SOURCE, "computed", "local_compute"),
        Computed("vllm:prompt_tokens_cached_total", "cached"),
        Computed("vllm:prefix_cache_hits_total", "cached"),
    ),
    forward=((Mean(f"{_PREFILL}_sum"),),),
    decode=((Mean(f"{_DECODE}_sum"),),),
    forward_note=(
        "vLLM's prefill time is from scheduling to the first token, and the vision encoder runs inside of it: "
        f"both are {FORWARD} here, and cannot be told apart"
    ),
    clock="vLLM's histograms of requests (wall time)",
    counters={
        "prefix_queries": "vllm:prefix_cache_queries_total",
        "prefix_hits": "vllm:prefix_cache_hits_total",
        "multimodal_queries": "vllm:mm_cache_queries_total",
        "multimodal_hits": "vllm:mm_cache_hits_total",
        "estimated_bytes_written": _WRITTEN,
    },
    passes="vllm:iteration_tokens_total_count",
    passes_alone=True,
    estimated_flops="vllm:estimated_flops_per_gpu_total",
    estimated_bytes=("vllm:estimated_read_bytes_per_gpu_total", _WRITTEN),
    estimate=(
        "vLLM estimates attention, feed-forward network and output head of the language model, without the vision "
        "encoders (vllm/v1/metrics/perf.py). It estimates what it scheduled on one GPU of each engine, chunk by chunk; "
        "ours is the work of the requests that finished"
    ),
    speculation=Speculation(
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    ),
    transferred=(_BY_SOURCE, "external_kv_transfer"),
    parts=("le", "source"),
    engine_labels=("engine",),
    created=("vllm:prompt_tokens_created", "vllm:generation_tokens_created"),
)
