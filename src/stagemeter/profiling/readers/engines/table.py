"""The pages of serving engines: the metric of each quantity. An engine is one such table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Mean:
    """Seconds a request: the growth of `total` over that of `count`, or over the requests if there is no `count`.

    `part` is the label's value of the series, and `seconds` the unit of `total`.
    """

    total: str
    count: str = ""
    part: str = ""
    seconds: float = 1.0


def mean(histogram: str, part: str = "") -> Mean:
    """Return the mean of a histogram of seconds over its own observations."""
    return Mean(f"{histogram}_sum", f"{histogram}_count", part)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of requests: a histogram over finished requests, else the first counters that a page has, added up.

    The counters count unfinished requests, too, unless they are `of_finished` ones.
    """

    histogram: str = ""
    counters: tuple[tuple[str, ...], ...] = ()
    of_finished: bool = False


@dataclass(frozen=True, slots=True)
class Computed:
    """Prompt tokens that were computed: a histogram over finished requests, or a counter of them or of cached ones.

    A counter that is absent from the page counts as zero if it is `absent_until_used`.
    """

    metric: str
    kind: Literal["histogram", "computed", "cached"]
    part: str = ""
    absent_until_used: bool = False


@dataclass(frozen=True, slots=True)
class Speculation:
    """Counters of speculative decoding: verification passes, drafted tokens, and those of them that were accepted."""

    drafts: str = ""
    draft_tokens: str = ""
    accepted_tokens: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """The metrics of a serving engine.

    Attributes
    ----------
    name : str
        Of the engine, in messages.
    prefixes : tuple of str
        Beginnings of the names of its metrics.
    server : str
        What to do if a metric is missing.
    required : tuple of str
        Metrics without which a page says nothing.
    requests : str
        Counter of finished requests. Empty: the page has none.
    prompt, new : Tokens
        Tokens of prompts, cached ones included, and of answers.
    computed : tuple of Computed
        Sources of the prompt tokens that were computed, the best first.
    uncounted_cache : str
        What holds without any of them.
    forward, decode : tuple of tuple of Mean
        Seconds a request until the first token, and from the first to the last: the first of each tuple less the
        others. The first tuple that a page has is taken.
    request : tuple of tuple of Mean
        Seconds of a whole request, for a page that tells no stages apart.
    forward_note, decode_note : str
        What that time contains.
    clock : str
        Who measured, with which clock.
    counters : mapping
        Further counters: ``prefix_queries`` and ``prefix_hits`` are tokens looked up and found in the prefix cache,
        ``multimodal_queries`` and ``multimodal_hits`` pictures looked up and found in a cache.
    passes : str
        Counter of passes through the whole model, or of some of them.
    passes_alone : bool
        Whether each process in front of the engines counts a pass of its own, so that the counter says nothing on a
        page of several. Such a page lacks ``process_start_time_seconds``.
    estimated_flops, estimated_bytes : str, tuple of str
        The engine's own estimates of FLOPs, and of bytes read and written, on one device of an engine.
    estimated_as, estimate : str
        Our count that the estimate of FLOPs is compared with, and what it counts.
    speculation : Speculation
        Counters of speculative decoding.
    transferred : tuple of str, optional
        Counter of prompt tokens from another server, and the label's value of its series.
    parts : tuple of str
        Labels that tell the series of a metric apart. Series that differ in other labels are added up.
    engine_labels : tuple of str
        Labels of engines, each with devices of its own.
    ranks : tuple of str
        Labels of devices that work on the same requests: the series of the first one counts.
    appear_when_used : bool
        Whether a series appears with its first event, so that its absence from the earlier page means zero.
    frontend : bool
        Whether requests are counted in front of the engines, for all together.
    digits : int, optional
        Significant digits that the page prints.
    created : tuple of str
        Metrics that show a restart after which counters have caught up.
    """

    name: str
    prefixes: tuple[str, ...]
    server: str
    required: tuple[str, ...]
    requests: str
    prompt: Tokens
    new: Tokens
    computed: tuple[Computed, ...] = ()
    uncounted_cache: str = "no counter of cached tokens: whole prompts"
    forward: tuple[tuple[Mean, ...], ...] = ()
    decode: tuple[tuple[Mean, ...], ...] = ()
    request: tuple[tuple[Mean, ...], ...] = ()
    forward_note: str = ""
    decode_note: str = ""
    clock: str = ""
    counters: Mapping[str, str] = field(default_factory=dict)
    passes: str = ""
    passes_alone: bool = False
    estimated_flops: str = ""
    estimated_bytes: tuple[str, ...] = ()
    estimated_as: Literal["flops", "flops_causal"] = "flops"
    estimate: str = ""
    speculation: Speculation = Speculation()
    transferred: tuple[str, str] | None = None
    parts: tuple[str, ...] = ("le",)
    engine_labels: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    appear_when_used: bool = False
    frontend: bool = False
    digits: int | None = None
    created: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Name of a profile's source."""
        return f"{self.name} metrics"

    @property
    def wanted(self) -> frozenset[str]:
        """Names of all metrics that are read."""
        return frozenset(name for name in self._names() if name)

    def _names(self) -> Iterator[str]:
        yield from (*self.required, *self.created, self.requests, self.passes, self.estimated_flops)
        yield from (*self.counters.values(), *self.estimated_bytes)
        yield from self.transferred[:1] if self.transferred else ()
        yield from (self.speculation.drafts, self.speculation.draft_tokens, self.speculation.accepted_tokens)
        for alternatives in (self.forward, self.decode, self.request):
            for time in alternatives:
                for part in time:
                    yield from (part.total, part.count)
        for tokens in (self.prompt, self.new):
            yield from _histogram(tokens.histogram)
            for counters in tokens.counters:
                yield from counters
        for computed in self.computed:
            yield from _histogram(computed.metric) if computed.kind == "histogram" else (computed.metric,)


def _histogram(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{part}" for part in ("sum", "count", "bucket")) if name else ()
