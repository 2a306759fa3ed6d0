"""Spans of an OpenTelemetry export in JSON: one document, or one a line as the collector's file exporter writes.

Sources: opentelemetry-proto, ``opentelemetry/proto/trace/v1/trace.proto`` in JSON (``intValue`` is text), and vLLM
0.32, ``vllm/tracing/utils.py`` (``SpanAttributes``): a span ``llm_request`` for each request that ended, with tokens
and seconds. No attribute has cached tokens, pictures or the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.json_list import values_of
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, first_records, log_of_records
from stagemeter.core.errors import StagemeterError

#: The key that a document begins with.
SPANS = "resourceSpans"
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
    head = first_records((number, record) for number, _, record in requests_of_spans(path))
    if not head:
        raise StagemeterError(f"{path}: has no span with numbers of tokens. Export those of the serving engine")
    records = ((number, record) for number, _, record in requests_of_spans(path))
    return log_of_records("OpenTelemetry", path, records, head, bad)


def requests_of_spans(path: Path) -> Iterator[tuple[int, Mapping[str, Any], dict[str, Any]]]:
    """Yield the spans of an export that have numbers of tokens: number, attributes with times, and columns of a log."""
    number = 0
    for span in values_of(path, f"{SPANS}.item.scopeSpans.item.spans.item", several=True):
        attributes = _attributes(span)
        record = {
            column: next(attributes[name] for name in names if name in attributes)
            for column, names in _TOKENS.items()
            if any(name in attributes for name in names)
        }
        if "prompt_tokens" in record:
            number += 1
            yield number, attributes, record


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
    return found


def _whole(value: Any) -> Any:
    """Return a whole number that JSON holds as text."""
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value
