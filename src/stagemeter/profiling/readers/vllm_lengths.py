"""Lengths of the requests between two pages of vLLM's metrics: sums, histograms, and tokens from a cache."""

from __future__ import annotations

import math

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.length_sums import Interval, mean_pair_sums, pair_sums
from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths
from stagemeter.profiling.readers.prometheus import Growth

PROMPT_TOKENS = "vllm:prompt_tokens_total"
NEW_TOKENS = "vllm:generation_tokens_total"
_REQUEST_PROMPT = "vllm:request_prompt_tokens"
_REQUEST_NEW = "vllm:request_generation_tokens"
_REQUEST_COMPUTED = "vllm:request_prefill_kv_computed_tokens"
_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
_LOCAL = "local_compute"
_CACHED = "vllm:prompt_tokens_cached_total"
CACHE_HITS = "vllm:prefix_cache_hits_total"
#: Metrics that `request_lengths` reads.
LENGTHS = (
    *(
        f"{name}_{part}"
        for name in (_REQUEST_PROMPT, _REQUEST_NEW, _REQUEST_COMPUTED)
        for part in ("sum", "count", "bucket")
    ),
    PROMPT_TOKENS,
    NEW_TOKENS,
    _BY_SOURCE,
    _CACHED,
    CACHE_HITS,
)
_WHOLE = "no counter of cached tokens: whole prompts"


def request_lengths(name: str, grown: Growth, requests: int) -> tuple[RequestLengths, list[str]]:
    """Read the lengths of the finished requests, with notes on their sources; `name` is the later page, for errors."""
    notes: list[str] = []
    try:
        prompt = _lengths("prompt", grown, _REQUEST_PROMPT, PROMPT_TOKENS, requests, notes)
        new = _lengths("new", grown, _REQUEST_NEW, NEW_TOKENS, requests, notes)
        computed, source = _computed(grown, prompt, requests)
        lengths = RequestLengths(prompt, new, computed, source)
    except ValueError as error:
        raise StagemeterError(f"{name}: {error}. Wait longer between the scrapes, or scrape again") from None
    if lengths.cached:
        notes.append(
            f"{lengths.cached} of {prompt.total} prompt tokens came from a cache and were not computed ({source}): "
            f"work is counted of the other {computed.total}, over their whole context"
        )
    sums = pair_sums(lengths)
    if sums.prompt.least < sums.prompt.most or sums.decode.least < sums.decode.most:
        mean = mean_pair_sums(lengths)
        notes.append(
            f"work is an estimate from the mean lengths of requests, {prompt.total / requests:.6g} prompt and "
            f"{new.total / requests:.6g} new tokens. Attention grows with products of lengths, of which the histograms "
            f"give bounds: computed x prompt tokens {_bounds(sums.prompt, mean.prompt)}, tokens that decode steps "
            f"attend to {_bounds(sums.decode, mean.decode)}. `stagemeter mfu` says what that makes of the FLOPs"
        )
    return lengths, notes


def _bounds(bounds: Interval, mean: Interval) -> str:
    return f"{float(mean.least):,.0f} by the means, {math.floor(bounds.least):,} to {math.ceil(bounds.most):,}"


def _lengths(what: str, grown: Growth, histogram: str, counter: str, requests: int, notes: list[str]) -> Histogram:
    """Return the lengths of finished requests from the histogram, else from the counter."""
    finished = grown.total(f"{histogram}_count") == requests
    total = grown.total(f"{histogram}_sum") if finished else grown.total(counter)
    tokens = round(total or 0)
    if tokens < requests:
        raise ValueError(f"between the scrapes there were {tokens / requests:.3g} {what} tokens a request")
    if finished:
        return Histogram(tokens, _buckets(grown, histogram, 1, requests))
    notes.append(
        f"{what} tokens are those of {counter}, which also counts requests that are not finished: "
        "the mean is off if some were under way at a scrape"
    )
    return Histogram(tokens, (Bucket(1, None, requests),))


def _buckets(grown: Growth, histogram: str, shortest: int, requests: int) -> tuple[Bucket, ...]:
    """Return the buckets that hold requests; a page has their running sums by upper length."""
    running = sorted((float(end), count) for end, count in grown.parts(f"{histogram}_bucket").items())
    if not running or running[-1] != (math.inf, requests):
        return (Bucket(shortest, None, requests),)
    buckets, least, below = [], shortest, 0.0
    for end, count in running:
        if count < below:
            raise ValueError(f"{histogram}: the buckets are no running sum")
        most = None if math.isinf(end) else math.floor(end)
        if count > below:
            buckets.append(Bucket(least, most, round(count - below)))
        least, below = shortest if most is None else max(least, most + 1), count
    return tuple(buckets)


def _computed(grown: Growth, prompt: Histogram, requests: int) -> tuple[Histogram, str]:
    """Return the computed prompt tokens from the best metric of the page, and that metric."""
    if grown.total(f"{_REQUEST_COMPUTED}_count") == requests:
        tokens = round(grown.total(f"{_REQUEST_COMPUTED}_sum") or 0)
        return Histogram(tokens, _buckets(grown, _REQUEST_COMPUTED, 0, requests)), _REQUEST_COMPUTED
    processed = grown.total(PROMPT_TOKENS) or 0.0
    local, cached, hits = grown.total(_BY_SOURCE, _LOCAL), grown.total(_CACHED), grown.total(CACHE_HITS)
    if local is not None:
        share, source = local, f"{_BY_SOURCE}, {_LOCAL}"
    elif cached is not None or hits is not None:
        source = _CACHED if cached is not None else CACHE_HITS
        share = processed - (cached if cached is not None else hits or 0.0)
    else:
        return prompt, _WHOLE
    if share >= processed or not processed:
        return prompt, source
    # Counters include unfinished requests: take the same number for the finished ones, or the same share.
    tokens = round(share if processed == prompt.total else prompt.total * share / processed)
    if processed != prompt.total:
        source += ", as a share of all that was processed"
    return Histogram(max(0, tokens), (Bucket(0, None, requests),)), source
