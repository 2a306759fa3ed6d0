"""Times and lengths of requests from the spans that a serving engine sends: vLLM's ``llm_request``.

With ``--otlp-traces-endpoint``, vLLM sends a span for each request that ended, with the seconds that its page sums up
(vLLM 0.32, ``vllm/v1/engine/output_processor.py``, `do_tracing`). They are read as the growth of such a page, whose
histograms tell each length apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.otlp import SPANS, requests_of_spans
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers.checks import exact
from stagemeter.profiling.readers.engines.pages import profile_of_growth
from stagemeter.profiling.readers.engines.table import Computed, Engine, Mean, Tokens
from stagemeter.profiling.readers.engines.vllm import VLLM
from stagemeter.profiling.readers.files import Sample
from stagemeter.profiling.readers.mapping import NameMapping
from stagemeter.profiling.readers.prometheus import Growth, Series

#: Attributes with seconds, as sums of the growth.
_SECONDS = {"prefill": "gen_ai.latency.time_in_model_prefill", "decode": "gen_ai.latency.time_in_model_decode"}
_QUEUE = "gen_ai.latency.time_in_queue"
_FIRST, _LAST = "startTimeUnixNano", "endTimeUnixNano"

_ENGINE = Engine(
    name="OpenTelemetry spans",
    prefixes=(),
    server="",
    required=(),
    requests="requests",
    prompt=Tokens("prompt_tokens"),
    new=Tokens("output_tokens"),
    computed=(Computed("computed_tokens", "histogram"),),
    uncounted_cache="no counter in the spans: prompts count as a whole, and FLOPs are at most what is given",
    forward=((Mean("prefill"),),),
    decode=((Mean("decode"),),),
    forward_note=VLLM.forward_note,
    clock="the engine's own times in spans (wall time)",
)


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with spans."""
    return sample.is_json and f'"{SPANS}"'.encode() in sample.head


def read(path: Path, *, steps: int, mapping: NameMapping) -> Profile:
    """Return the mean times of the requests whose spans a file holds, over the time from the first to the last."""
    requests = [(attributes, record) for _, attributes, record in requests_of_spans(path)]
    needed = (*_SECONDS.values(), _FIRST, _LAST)
    whole = [
        (attributes, record)
        for attributes, record in requests
        if "output_tokens" in record and all(name in attributes for name in needed)
    ]
    if not whole:
        raise StagemeterError(
            f"{path}: no span has tokens and times of a request. Export those of vLLM, with --otlp-traces-endpoint"
        )
    values: dict[Series, float] = {("requests", ""): len(whole)}
    for column in ("prompt_tokens", "output_tokens"):
        values |= _histogram(column, [_number(path, record[column]) for _, record in whole])
    for name, attribute in _SECONDS.items():
        values[name, ""] = sum(_number(path, attributes[attribute]) for attributes, _ in whole)
    if all("cached_tokens" in record for _, record in whole):
        parts = [[_number(path, record[f"{part}_tokens"]) for part in ("prompt", "cached")] for _, record in whole]
        values |= _histogram("computed_tokens", [prompt - cached for prompt, cached in parts])
    seconds = _seconds(path, [attributes for attributes, _ in whole])
    profile = profile_of_growth(str(path), Growth(_ENGINE, {"": values}), seconds)
    notes = [*profile.notes, *_further(path, [attributes for attributes, _ in whole])]
    if len(whole) < len(requests):
        notes.append(f"{len(requests) - len(whole)} spans of requests lack times or new tokens, and are left out")
    return replace(profile, source=_ENGINE.name, notes=tuple(notes))


def _histogram(name: str, lengths: Sequence[float]) -> dict[Series, float]:
    """Return a histogram with a bucket for each length: running sums up to it, and below it."""
    values: dict[Series, float] = {(f"{name}_sum", ""): sum(lengths), (f"{name}_count", ""): len(lengths)}
    below = 0
    for length, count in sorted(Counter(map(int, lengths)).items()):
        values[f"{name}_bucket", str(length - 1)] = below
        below += count
        values[f"{name}_bucket", str(length)] = below
    values[f"{name}_bucket", "+Inf"] = below
    return values


def _number(path: Path, value: Any) -> float:
    try:
        number = exact(value)
    except ValueError:
        number = None
    if number is None or number < 0:
        raise StagemeterError(
            f"{path}: a span has {shown(value)}, which is no number of tokens or seconds. Export again"
        )
    return float(number)


def _seconds(path: Path, spans: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the time from the arrival of the first request to the end of the last."""
    first = min(_number(path, span[_FIRST]) for span in spans)
    last = max(_number(path, span[_LAST]) for span in spans)
    return (last - first) / 1e9 if last > first else None


def _further(path: Path, spans: Sequence[Mapping[str, Any]]) -> list[str]:
    waits = [_number(path, span[_QUEUE]) for span in spans if _QUEUE in span]
    if not waits:
        return []
    return [f"requests waited {1e3 * sum(waits) / len(waits):.3g} ms in the queue on average, which no stage contains"]
