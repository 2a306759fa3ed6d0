"""Traces of an experiment: read page by page, and tagged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException

from stagemeter.analysis.calls import Call, UncountedError
from stagemeter.tracking.runs import find_experiment
from stagemeter.tracking.spans import call_of, is_call, model_of, parents_of, tokens_of
from stagemeter.tracking.store import store_errors
from stagemeter.utilization.call_totals import Seen
from stagemeter.utilization.calls import CallCost, CallMeter, outermost

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


class TraceCalls(NamedTuple):
    """The outermost calls of a trace.

    Attributes
    ----------
    counted : dict
        By the id of its span: a call, and its cost where it is of the model.
    missing : list
        Calls that cannot be counted, with the reason.
    others : set of str
        Names of other models that were called.
    """

    counted: dict[str, tuple[Seen, Call, CallCost | None]]
    missing: list[tuple[Seen, UncountedError]]
    others: set[str]


def calls_of(trace: Trace, meter: CallMeter | None) -> TraceCalls:
    """Return the calls of a trace with their costs by a meter. Without one, calls have their tokens alone."""
    counted: dict[str, tuple[Seen, Call, CallCost | None]] = {}
    missing: dict[str, tuple[Seen, UncountedError]] = {}
    others = set[str]()
    for span in filter(is_call, trace.data.spans):
        seen = Seen(span.name, model_of(span), *times_of(span))
        try:
            if meter is None or meter.serves(seen.model):
                call = call_of(span, partial(attachment, trace))
                counted[span.span_id] = seen, call, None if meter is None else meter.cost(call, seen.seconds)
            else:
                others.add(str(seen.model))
                counted[span.span_id] = seen, tokens_of(span), None
        except UncountedError as error:
            missing[span.span_id] = seen, error
    kept, lost = outermost(parents_of(trace.data.spans), counted, missing)
    in_order = {name: found for name, found in counted.items() if name in kept}
    return TraceCalls(in_order, [found for name, found in missing.items() if name in lost], others)


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
