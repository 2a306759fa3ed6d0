"""The requests that a server answered between two scrapes, from their log: exact work, held to the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stagemeter.analysis.request_costs import RequestCosts, exact_sum
from stagemeter.analysis.request_logs.check import Requests
from stagemeter.conventions.sizes import DecoderSizes, NoFormulaError, read_sizes
from stagemeter.conventions.vllm import Scheduled, scheduled_prefill, scheduled_steps, written_bytes
from stagemeter.core.cost import item_sizes
from stagemeter.core.errors import StagemeterError
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers.engines.vllm import VLLM
from stagemeter.utilization.engine_estimate import chunk_parts, estimate_parts
from stagemeter.utilization.mixed_lengths import Estimated, RequestsWork


@dataclass(frozen=True)
class ServedRequests:
    """The work of the requests of a log.

    Attributes
    ----------
    log : str
        Name of the file.
    requests, prompt_tokens, cached_tokens, output_tokens : int
        Number of requests, and sums over them.
    flops, flops_causal : mapping
        What the model needs by stage; decode is all steps.
    parts : mapping or None
        Parts of vLLM's estimate of these requests less `flops`, by name, see
        `stagemeter.utilization.engine_estimate`. None where vLLM's formula on the model is not known.
    """

    log: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    flops: Mapping[str, int]
    flops_causal: Mapping[str, int]
    parts: Mapping[str, int] | None = None

    @property
    def lengths(self) -> RequestLengths:
        """Lengths of the requests, by their sums alone."""
        computed = self.prompt_tokens - self.cached_tokens
        prompt, new, known = (
            Histogram(tokens, (Bucket(least, None, self.requests),))
            for tokens, least in ((self.prompt_tokens, 1), (self.output_tokens, 1), (computed, 0))
        )
        return RequestLengths(prompt, new, known, self.log)

    @property
    def work(self) -> RequestsWork:
        """The exact work of the requests."""
        quantities = {"flops": self.flops, "flops_causal": self.flops_causal}
        return RequestsWork(
            self.lengths,
            {
                quantity: {stage: Estimated(flops, flops, flops) for stage, flops in stages.items()}
                for quantity, stages in quantities.items()
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> ServedRequests:
        """Read the output of `to_dict`, or raise ValueError."""
        try:
            found = cls(**{one.name: content[one.name] for one in fields(cls)})
            numbers = [found.requests, found.prompt_tokens, found.cached_tokens, found.output_tokens]
            for by_name in (found.flops, found.flops_causal, found.parts or {}):
                numbers += by_name.values()
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no requests of a log: {error!r}") from None
        if not all(isinstance(number, int) for number in numbers) or found.requests < 1:
            raise ValueError("no requests of a log: numbers of tokens, requests and FLOPs are whole")
        return found


@dataclass
class _Passes:
    """Sums over the prefills and decode steps of requests that are added batch by batch."""

    sizes: DecoderSizes
    prefill: Scheduled = field(default_factory=Scheduled)
    steps: Scheduled = field(default_factory=Scheduled)

    def add(self, requests: Requests) -> None:
        """Add some requests."""
        count = len(requests.line)
        self.prefill += _summed(scheduled_prefill(self.sizes, requests.prompt, requests.cached), count)
        self.steps += _summed(scheduled_steps(self.sizes, requests.prompt, requests.output), count)


def _summed(each: Scheduled, count: int) -> Scheduled:
    pairs = {window: exact_sum(pairs, count) for window, pairs in each.pairs.items()}
    return Scheduled(exact_sum(each.tokens, count), exact_sum(each.heads, count), pairs)


def served_requests(costs: RequestCosts, batches: Iterable[Requests], profile: Profile) -> ServedRequests:
    """Sum up the requests of a log, and hold them to what a page says.

    Parameters
    ----------
    costs : RequestCosts
        Costs of the model, to which the `batches` of the log are added.
    profile : Profile
        What the page says of the same requests.

    Raises
    ------
    StagemeterError
        If the log and the page contradict each other.
    """
    model = costs.model
    decoder = model.family.decoder(model.architecture)
    passes = None
    if profile.source == VLLM.source and isinstance(decoder, Decoder):
        passes = _Passes(read_sizes(decoder, model.config))
    for batch in batches:
        costs.add(batch)
        if passes is not None:
            passes.add(batch)
    document = costs.document()
    _require_same(str(costs.bad.path), document, profile)
    flops, causal = (
        {stage: int(sums[name]) for stage, sums in document["stages"].items()} for name in ("flops", "flops_causal")
    )
    return ServedRequests(
        log=costs.bad.path.name,
        requests=document["requests"],
        prompt_tokens=document["prompt_tokens"],
        cached_tokens=document["cached_tokens"],
        output_tokens=document["output_tokens"],
        flops=flops,
        flops_causal=causal,
        parts=None if passes is None else _parts(costs, passes, flops, profile.metrics),
    )


def _parts(
    costs: RequestCosts, passes: _Passes, flops: Mapping[str, int], metrics: Mapping[str, float]
) -> dict[str, int] | None:
    sizes, whole = passes.sizes, passes.prefill + passes.steps
    try:
        parts = estimate_parts(sizes, flops, passes.prefill, passes.steps)
    except NoFormulaError:
        return None
    theirs, written = (metrics.get(f"engine/estimated_{name}") for name in ("flops", "bytes_written"))
    if theirs is None or written is None:
        return parts
    items = item_sizes(costs.config.dtype, costs.config.kv_cache_dtype)
    return parts | chunk_parts(sizes, whole, round(theirs), round(written), written_bytes(sizes, *items))


def _require_same(log: str, found: Mapping[str, int], profile: Profile) -> None:
    """Refuse a log whose requests are not those of a page."""
    finished, lengths = round(profile.metrics["engine/requests"]), profile.lengths
    if found["requests"] != finished:
        than = "longer" if found["requests"] > finished else "shorter"
        raise StagemeterError(
            f"{log}: has {found['requests']:,} requests, and {finished:,} finished between the scrapes: the log is "
            f"{than} than the interval. Give the requests that finished in it"
        )
    if lengths is None:
        return
    pairs = {
        "prompt tokens": (found["prompt_tokens"], lengths.prompt.total),
        "output tokens": (found["output_tokens"], lengths.new.total),
    }
    if lengths.computed_known:
        pairs["computed prompt tokens"] = (found["computed_tokens"], lengths.computed.total)
    for name, (logged, counted) in pairs.items():
        if logged != counted:
            raise StagemeterError(
                f"{log}: has {logged:,} {name}, and the page counted {counted:,} of as many requests. Give the log of "
                "these requests"
            )
