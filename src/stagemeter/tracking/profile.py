"""A profile as an MLflow run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.metrics import profile_values
from stagemeter.core.params import profile_params
from stagemeter.core.workload import stable_hash
from stagemeter.export.profile import profile_files, profile_markdown
from stagemeter.tracking.document import log_document, require_room
from stagemeter.tracking.labels import HARDWARE, LENGTHS, PROFILE, SCHEMA, workload_tags
from stagemeter.tracking.store import store_errors

#: The trace, beside the files of the profile.
TRACE_FILE = "trace.json.gz"
#: The header of the times in a run's description. Utilization goes before it.
TIMES_HEADER = "## Times"


def require_unused(run_id: str) -> None:
    """Refuse a run that holds a document, before the work whose result it could not hold."""
    with store_errors():
        require_room(run_id, PROFILE)


def log_profile(run_id: str, document: Mapping[str, Any], trace: bytes | None = None) -> None:
    """Log a profile to an MLflow run, and its compressed Chrome trace.

    For a stage with several repeats, ``time_ms/<stage>`` holds each repeat as a step, from 0. Its last step is the
    median, since tables and charts show the last value.
    """
    files = profile_files(document)
    if trace is not None:
        files[TRACE_FILE] = trace
    with store_errors():
        log_document(
            run_id,
            PROFILE,
            stable_hash(document),
            params=profile_params(document),
            metrics=_metrics(document),
            tags=_tags(document),
            files=files,
        )


def _metrics(document: Mapping[str, Any]) -> list[Metric]:
    """Return every repeat as a step, followed by the values that tables and charts show."""
    now = int(time.time() * 1000)
    series = {**document["times_ms"], "request": document["request_ms"]}
    metrics = [
        Metric(f"time_ms/{stage}", value, now, step)
        for stage, times in series.items()
        if len(times) > 1
        for step, value in enumerate(times)
    ]
    for name, value in profile_values(document).items():
        quantity, _, stage = name.partition("/")
        repeats = len(series.get(stage, ())) if quantity == "time_ms" else 0
        metrics.append(Metric(name, value, now, repeats if repeats > 1 else 0))
    return metrics


def _tags(document: Mapping[str, Any]) -> dict[str, str]:
    tags = workload_tags(document["metadata"]) | {
        SCHEMA: document["schema_version"],
        "stagemeter.source": document["source"],
        "stagemeter.clock": document["clock"],
        **{f"{HARDWARE}{name}": value for name, value in document["hardware"].items()},
        MLFLOW_RUN_NOTE: f"{TIMES_HEADER}\n\n{profile_markdown(document)}",
    }
    if document["lengths"] is not None:
        tags[LENGTHS] = json.dumps(document["lengths"], separators=(",", ":"))
    return tags
