"""Spans of an OpenTelemetry export in JSON: one document, or one a line as the collector's file exporter writes.

Sources: opentelemetry-proto, ``opentelemetry/proto/trace/v1/trace.proto`` in JSON (``intValue`` is text), and vLLM
0.32, ``vllm/tracing/utils.py`` (``SpanAttributes``): a span ``llm_request`` for each request that ended, with tokens
and seconds. No attribute has cached tokens, pictures or the model.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.json_list import values_of
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, log_of_records
from stagemeter.core.errors import StagemeterError

#: The key that a document begins with.
SPANS = "resourceSpans"
#: Spans between two that have numbers of tokens.
_DEEPEST = 1000
#: Attributes of tokens: vLLM's, and those of OpenTelemetry's conventions (``gen-ai-spans.md``).
_TOKENS = {
    "prompt_tokens": ("gen_ai.usage.prompt_tokens", "gen_ai.usage.input_tokens"),
    "cached_tokens": ("gen_ai.usage.cache_read.input_tokens",),
    "output_tokens": ("gen_ai.usage.completion_tokens", "gen_ai.usage.output_tokens"),
}


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with spans."""
    return SPANS in sample.keys


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of an export. Spans of requests are numbered from 1."""
    bad.place = "span"
    records = ((number, record) for number, _, record in requests_of_spans(path))
    remedy = "Export spans with numbers of tokens, those of the serving engine"
    return log_of_records("OpenTelemetry", path, records, bad, remedy=remedy)


def requests_of_spans(path: Path) -> Iterator[tuple[int, Mapping[str, Any], dict[str, Any]]]:
    """Yield the spans of an export that have numbers of tokens: number, attributes with times, and columns of a log.

    At the end, refuse an export in which one such span is within another: both tell of the same tokens.
    """
    number, tree = 0, _Tree()
    for span in values_of(path, f"{SPANS}.item.scopeSpans.item.spans.item", several=True):
        attributes = _attributes(span)
        record = {
            column: next(attributes[name] for name in names if name in attributes)
            for column, names in _TOKENS.items()
            if any(name in attributes for name in names)
        }
        tree.add(span, counted="prompt_tokens" in record)
        if "prompt_tokens" in record:
            number += 1
            yield number, attributes, record
    if nested := tree.nested():
        raise StagemeterError(
            f"{path}: of the spans with numbers of tokens, {nested:,} are within others that have them, so tokens "
            "would count twice. Export the spans of the serving engine alone"
        )


@dataclass
class _Tree:
    """The nesting of an export's spans by their ids, 0 for none: 17 bytes a span."""

    spans: array[int] = field(default_factory=lambda: array("Q"))
    parents: array[int] = field(default_factory=lambda: array("Q"))
    counted: bytearray = field(default_factory=bytearray)

    def add(self, span: Any, counted: bool) -> None:
        """Add a span; `counted` says whether it has numbers of tokens."""
        of_span = span if isinstance(span, dict) else {}
        self.spans.append(_id(of_span.get("spanId")))
        self.parents.append(_id(of_span.get("parentSpanId")))
        self.counted.append(counted)

    def nested(self) -> int:
        """Return the number of spans with numbers of tokens that are within others."""
        import numpy as np

        if not any(self.counted):
            return 0
        spans, parents = (np.frombuffer(ids, np.uint64) for ids in (self.spans, self.parents))
        counted = np.frombuffer(self.counted, bool)
        order = np.argsort(spans, kind="stable")
        above = np.minimum(np.searchsorted(spans, parents, sorter=order), len(spans) - 1)
        above = np.where((parents > 0) & (spans[order[above]] == parents), order[above], -1)
        found, within = np.flatnonzero(counted), 0
        at, steps = above[found], 0
        # A damaged export can have a span within itself.
        while len(at := at[at >= 0]) and steps < _DEEPEST:
            within += int(counted[at].sum())
            at, steps = above[at[~counted[at]]], steps + 1
        return within


def _id(value: Any) -> int:
    """Return the number of a span's id of 16 hexadecimal digits, 0 without one."""
    try:
        number = int(value, 16)
    except (TypeError, ValueError):
        return 0
    return number if 0 < number < 2**64 else 0


def _attributes(span: Any) -> dict[str, Any]:
    """Return the attributes of a span, with its beginning and end in nanoseconds."""
    if not isinstance(span, dict) or not isinstance(span.get("attributes"), list):
        return {}
    found = {name: _whole(span[name]) for name in ("startTimeUnixNano", "endTimeUnixNano") if name in span}
    for attribute in span["attributes"]:
        match attribute:
            case {"key": str(key), "value": {"intValue": value}}:
                found[key] = _whole(value)
            case {"key": str(key), "value": {"doubleValue": value} | {"stringValue": value}}:
                found[key] = value
            # Such a span is bad, not one without tokens.
            case {"key": str(key), "value": value} if any(key in names for names in _TOKENS.values()):
                found[key] = value
    return found


def _whole(value: Any) -> Any:
    """Return a whole number that JSON holds as text."""
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value
