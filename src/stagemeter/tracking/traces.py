"""Traces of an experiment: read page by page, and tagged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException

from stagemeter.tracking.runs import find_experiment
from stagemeter.tracking.store import store_errors

#: Traces of a page, whose inputs are all in memory.
_PAGE = 50
#: Where MLflow keeps the attachments of a trace.
_PLACE = "mlflow.artifactLocation"


def traces_of(experiment: str, since: float | None = None) -> Iterator[Trace]:
    """Yield the traces of an experiment that began at a time or later, in seconds since 1970, the oldest first."""
    with store_errors():
        place, token = find_experiment(experiment), None
    condition = None if since is None else f"attributes.timestamp_ms >= {int(1000 * since)}"
    while True:
        with store_errors():
            page = mlflow.MlflowClient().search_traces(
                [place], condition, max_results=_PAGE, order_by=["attributes.timestamp_ms ASC"], page_token=token
            )
        yield from page
        token = page.token
        if not token:
            return


def attachment(trace: Trace, name: str) -> bytes:
    """Return an attachment of a stored trace, or raise KeyError."""
    place = trace.info.tags.get(_PLACE)
    if not place:
        raise KeyError(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{place.rstrip('/')}/attachments/{name}", dst_path=folder
            )
        except (MlflowException, OSError):
            raise KeyError(name) from None
        return Path(path).read_bytes()


def set_tags(trace: Trace, tags: Mapping[str, str]) -> None:
    """Give a stored trace some tags, where it does not have them."""
    for name, value in tags.items():
        if trace.info.tags.get(name) != value:
            with store_errors():
                mlflow.MlflowClient().set_trace_tag(trace.info.trace_id, name, value)


def times_of(span: Any) -> tuple[float, float | None]:
    """Return the beginning and the end of a span in seconds since 1970; no end while it lasts."""
    end = span.end_time_ns
    return span.start_time_ns * 1e-9, None if end is None else end * 1e-9
