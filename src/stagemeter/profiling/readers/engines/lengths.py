"""Lengths of the requests between two pages of a serving engine: sums, histograms, and tokens from a cache."""

from __future__ import annotations

import math

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.length_sums import Interval, mean_pair_sums, pair_sums
from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths
from stagemeter.profiling.readers.engines.table import Computed, Tokens
from stagemeter.profiling.readers.prometheus import Growth


def request_lengths(name: str, grown: Growth, requests: int) -> tuple[RequestLengths | None, list[str]]:
    """Read the lengths of the finished requests, with notes on their sources; `name` is the later page, for errors.

    None where the page does not count tokens.
    """
    engine, notes = grown.engine, list[str]()
    try:
        prompt = _lengths("prompt", grown, engine.prompt, requests, notes)
        new = _lengths("new", grown, engine.new, requests, notes)
        if prompt is None or new is None:
            return None, [f"{engine.name}'s page has no number of tokens: lengths are those that the options give"]
        computed, source = _computed(grown, prompt, requests)
        lengths = RequestLengths(prompt, new, computed, source)
    except ValueError as error:
        raise StagemeterError(f"{name}: {error}. Wait longer between the scrapes, or scrape again") from None
    if lengths.cached:
        notes.append(
            f"{lengths.cached} of {prompt.total} prompt tokens came from a cache and were not computed ({source}): "
            f"work is counted of the other {computed.total}, over their whole context"
        )
    elif source == engine.uncounted_cache:
        notes.append(f"cached tokens: {source}")
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


def processed_tokens(grown: Growth, tokens: Tokens) -> tuple[float | None, str]:
    """Return the growth of the first counters that the page has, unfinished requests included, and their names."""
    for counters in tokens.counters:
        found = [grown.total(counter) for counter in counters]
        if None not in found:
            return sum(value for value in found if value is not None), " + ".join(counters)
    return None, ""


def computed_tokens(grown: Growth) -> float | None:
    """Return the prompt tokens that were computed, unfinished requests included; None if the page does not say it."""
    prompt = processed_tokens(grown, grown.engine.prompt)[0]
    for source in grown.engine.computed:
        counted = _counted(grown, source)
        if counted is not None and prompt is not None:
            return counted if source.kind == "computed" else prompt - counted
    return None


def _counted(grown: Growth, source: Computed) -> float | None:
    """Return the growth of a counter; None if the page lacks it, or it is a histogram of finished requests."""
    if source.kind == "histogram":
        return None
    counted = grown.total(source.metric, source.part)
    return 0.0 if counted is None and source.absent_until_used else counted


def _bounds(bounds: Interval, mean: Interval) -> str:
    return f"{float(mean.least):,.0f} by the means, {math.floor(bounds.least):,} to {math.ceil(bounds.most):,}"


def _lengths(what: str, grown: Growth, tokens: Tokens, requests: int, notes: list[str]) -> Histogram | None:
    """Return the lengths of finished requests from the histogram, else from the counter; None without both."""
    histogram = tokens.histogram
    finished = bool(histogram) and grown.total(f"{histogram}_count") == requests
    processed, counters = processed_tokens(grown, tokens)
    total = grown.total(f"{histogram}_sum") if finished else processed
    if total is None:
        return None
    number = round(total)
    if number < requests:
        raise ValueError(f"between the scrapes there were {number / requests:.3g} {what} tokens a request")
    if finished:
        return Histogram(number, _buckets(grown, histogram, 1, requests))
    if not tokens.of_finished:
        notes.append(
            f"{what} tokens are those of {counters}, which also counts requests that are not finished: "
            "the mean is off if some were under way at a scrape"
        )
    return Histogram(number, (Bucket(1, None, requests),))


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
    for source in grown.engine.computed:
        if source.kind == "histogram" and grown.total(f"{source.metric}_count") == requests:
            tokens = round(grown.total(f"{source.metric}_sum") or 0)
            return Histogram(tokens, _buckets(grown, source.metric, 0, requests)), source.metric
        counted = _counted(grown, source)
        if counted is not None:
            return _share(grown, source, counted, prompt)
    return prompt, grown.engine.uncounted_cache


def _share(grown: Growth, source: Computed, counted: float, prompt: Histogram) -> tuple[Histogram, str]:
    """Return the computed tokens of the finished requests by a counter that includes unfinished ones."""
    name = f"{source.metric}, {source.part}" if source.part else source.metric
    processed = processed_tokens(grown, grown.engine.prompt)[0] or 0.0
    share = counted if source.kind == "computed" else processed - counted
    if share >= processed or not processed:
        return prompt, name
    # Take the same number for the finished ones, or the same share.
    tokens = round(share if processed == prompt.total else prompt.total * share / processed)
    if processed != prompt.total:
        name += ", as a share of all that was processed"
    return Histogram(max(0, tokens), (Bucket(0, None, prompt.requests),)), name
