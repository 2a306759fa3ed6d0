"""A profile becomes an MLflow run: params, times as metrics, tags, description and files, in few calls."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Metric, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.metrics import profile_values
from stagemeter.core.params import profile_params
from stagemeter.core.workload import stable_hash
from stagemeter.export.json_file import json_text
from stagemeter.export.profile import profile_markdown
from stagemeter.tracking.artifacts import log_files
from stagemeter.tracking.holding import missing_params, require_room
from stagemeter.tracking.labels import HARDWARE, LENGTHS, PROFILE, REPORT_HASH, SCHEMA, workload_tags
from stagemeter.tracking.store import store_errors

#: Artifacts of a profiling run.
JSON_FILE, MARKDOWN_FILE, TRACE_FILE = "profile.json", "profile.md", "trace.json.gz"
#: What the times begin with in a run's description; utilization goes before it.
TIMES_HEADER = "## Times"


def require_unused(run_id: str) -> None:
    """Refuse a run that holds something, before minutes are spent on what cannot be logged to it.

    Raises
    ------
    StagemeterError
        If it does.
    TrackingError
        If the store cannot be reached or refuses.
    """
    with store_errors():
        require_room(run_id, PROFILE)


def log_profile(run_id: str, document: Mapping[str, Any], trace: bytes | None = None) -> None:
    """Log a profile to an MLflow run.

    Of each stage with several repeats, ``time_ms/<stage>`` holds every repeat as a step, from 0, and as its last step
    the median, so that tables and charts, which show the last value, show the median.

    Parameters
    ----------
    run_id : str
        The run.
    document : mapping
        See `stagemeter.profiling.document.profile_document`.
    trace : bytes, optional
        A compressed Chrome trace.

    Raises
    ------
    StagemeterError
        If the run holds something else.
    TrackingError
        If the store cannot be reached or refuses.
    """
    with store_errors():
        document_hash = stable_hash(document)
        run = require_room(run_id, PROFILE, document_hash)
        params, otherwise = missing_params(run, profile_params(document))
        tags = [*_tags(document), RunTag(REPORT_HASH, document_hash), *otherwise]
        mlflow.MlflowClient().log_batch(run_id, metrics=_metrics(document), params=params, tags=tags)
        files: dict[str, str | bytes] = {JSON_FILE: json_text(document), MARKDOWN_FILE: profile_markdown(document)}
        if trace is not None:
            files[TRACE_FILE] = trace
        log_files(run_id, files)


def _metrics(document: Mapping[str, Any]) -> list[Metric]:
    """Every repeat as a step, and behind them the values that tables and charts show."""
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


def _tags(document: Mapping[str, Any]) -> list[RunTag]:
    tags = workload_tags(PROFILE, document["metadata"]) | {
        SCHEMA: document["schema_version"],
        "stagemeter.source": document["source"],
        "stagemeter.clock": document["clock"],
        **{f"{HARDWARE}{name}": value for name, value in document["hardware"].items()},
        MLFLOW_RUN_NOTE: f"{TIMES_HEADER}\n\n{profile_markdown(document)}",
    }
    if document["lengths"] is not None:
        tags[LENGTHS] = json.dumps(document["lengths"], separators=(",", ":"))
    return [RunTag(key, value) for key, value in tags.items()]
