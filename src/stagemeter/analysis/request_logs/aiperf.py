"""AIPerf's ``profile_export.jsonl``: a record a line, with metrics as objects of value and unit.

Source: aiperf/common/models/record_models.py (``MetricRecordInfo``) and aiperf/metrics/types, AIPerf 0.13.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.columns import FAILED, failure_of
from stagemeter.analysis.request_logs.json_lines import numbered_objects
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, log_of_records

#: Metrics of each column: what the server says, before what the client's tokenizer counts.
_METRICS = {
    "prompt_tokens": ("usage_prompt_tokens", "input_sequence_length"),
    "cached_tokens": ("usage_prompt_cache_read_tokens",),
    "output_tokens": ("usage_completion_tokens", "output_sequence_length"),
}


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with a record, or is another file of AIPerf."""
    keys = set(sample.keys)
    return {"metadata", "metrics"} <= keys or {"schema_version", "aiperf_version"} <= keys


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a file of records. Those of the warm-up are left out."""
    notes: list[str] = []
    remedy = "Give AIPerf's profile_export.jsonl"
    return log_of_records("AIPerf", path, _requests(path, bad, notes), bad, notes=notes, remedy=remedy)


def _requests(path: Path, bad: BadLines, notes: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    warm_ups = of_client = 0
    for line, record in numbered_objects(path, bad):
        metadata, metrics = record.get("metadata"), record.get("metrics")
        if not isinstance(metadata, dict) or not isinstance(metrics, dict):
            bad.add(line, "is no record of AIPerf")
            continue
        if metadata.get("benchmark_phase") == "warmup":
            warm_ups += 1
            continue
        request: dict[str, Any] = {}
        for column, names in _METRICS.items():
            values = {name: _value(metrics[name]) for name in names if metrics.get(name) is not None}
            if values:
                request[column] = next(iter(values.values()))
            of_client += bool(values) and len(names) > 1 and next(iter(values)) == names[-1]
        failure = failure_of(record)
        if failure is None and metadata.get("was_cancelled"):
            failure = "was cancelled"
        if failure is not None:
            request[FAILED] = failure
        # The metric is left out of records without a picture (image_metrics.py).
        request["image_count"] = _value(metrics.get("num_images", 0))
        yield line, request
    if warm_ups:
        notes.append(f"{warm_ups:,} requests of the warm-up are left out")
    if of_client:
        notes.append("some lengths are those of the client's tokenizer, since the server reported none")


def _value(metric: Any) -> Any:
    return metric.get("value") if isinstance(metric, dict) else metric
