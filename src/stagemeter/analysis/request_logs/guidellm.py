"""Reports of GuideLLM in JSON: benchmarks, each with its requests by how they ended.

Source: guidellm/benchmark/schemas/report.py and guidellm/schemas/base/request_stats.py, GuideLLM 0.8.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.columns import FAILED
from stagemeter.analysis.request_logs.json_list import values_of
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, log_of_records
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

_STATUSES = ("successful", "incomplete", "errored")
_COLUMNS = ("prompt_tokens", "cached_tokens", "output_tokens")


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with a report, in JSON or YAML."""
    return "benchmarks" in sample.keys or sample.start.startswith(b"benchmarks:")


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a report. Successful requests come first, numbered from 1 over all benchmarks."""
    with path.open("rb") as stream:
        if stream.read(11) == b"benchmarks:":
            raise StagemeterError(f"{path}: is a report in YAML. Give that in JSON, which GuideLLM writes as well")
    bad.place = "request"
    remedy = "Run the benchmark again, and keep its requests"
    log = log_of_records("GuideLLM", path, _requests(path), bad, remedy=remedy)
    whole = sum(
        value for value in values_of(path, "benchmarks.item.metrics.request_totals.successful") if type(value) is int
    )
    kept = sum(1 for _ in values_of(path, "benchmarks.item.requests.successful.item.request_id"))
    if whole > kept:
        log.notes.append(f"the report keeps {kept:,} of {whole:,} successful requests, and the others are not counted")
    return log


def _requests(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    for status in _STATUSES:
        for stats in values_of(path, f"benchmarks.item.requests.{status}.item"):
            number += 1
            if not isinstance(stats, dict):
                raise StagemeterError(f"{path}: request {number:,} is {shown(stats)}, not an object. Write it again")
            request = {name: stats[name] for name in _COLUMNS if stats.get(name) is not None}
            if status != "successful":
                request[FAILED] = _reason(stats) or status
            asked = stats.get("input_metrics")
            if isinstance(asked, dict) and "image_count" in asked:
                request["image_count"] = 0 if asked["image_count"] is None else asked["image_count"]
            yield number, request


def _reason(stats: Mapping[str, Any]) -> str | None:
    info = stats.get("info")
    error = info.get("error") if isinstance(info, dict) else None
    return error if isinstance(error, str) else None
