"""A profile as an MLflow run, and times from the metrics of a run."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.errors import StagemeterError
from stagemeter.core.escape import markdown_link
from stagemeter.core.metrics import in_runs, profile_values
from stagemeter.core.params import profile_params
from stagemeter.core.workload import stable_hash
from stagemeter.export.profile import profile_description, profile_files
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers import NameMapping
from stagemeter.profiling.readers.plain import profile_of_times
from stagemeter.tracking.document import log_document, require_room
from stagemeter.tracking.labels import (
    CONTEXT_DEVICE,
    HARDWARE,
    KIND,
    PROFILE,
    SCHEMA,
    SOURCE,
    workload_tags,
)
from stagemeter.tracking.runs import find_run
from stagemeter.tracking.store import require_reachable, store_errors

#: The trace, beside the files of the profile.
TRACE_FILE = "trace.json.gz"
#: Properties of a machine that a pairing reads. The document has all.
_HARDWARE = ("device", "cores", "devices", "devices_source")


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
    # Relative to MLflow's pages, as their own links to files are.
    link = None if trace is None else markdown_link(TRACE_FILE, f"get-artifact?path={TRACE_FILE}&run_uuid={run_id}")
    with store_errors():
        log_document(
            run_id,
            PROFILE,
            stable_hash(document),
            params=profile_params(document),
            metrics=_metrics(document),
            tags=_tags(document) | {MLFLOW_RUN_NOTE: profile_description(document, link)},
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
    values = in_runs(profile_values(document))
    for name, value in values.items():
        quantity, _, stage = name.partition("/")
        repeats = len(series.get(stage, ())) if quantity == "time_ms" else 0
        metrics.append(Metric(name, value, now, repeats if repeats > 1 else 0))
    places = {name: place for place, name in enumerate(values)}
    return sorted(metrics, key=lambda metric: places[metric.key])


def _tags(document: Mapping[str, Any]) -> dict[str, str]:
    return workload_tags(document["metadata"]) | {
        SCHEMA: document["schema_version"],
        SOURCE: document["source"],
        **{f"{HARDWARE}{name}": document["hardware"][name] for name in _HARDWARE if name in document["hardware"]},
    }


def read_metrics(run: str, metrics: Mapping[str, str], steps: int, vision: Sequence[str]) -> Profile:
    """Read the times of stages from the metrics of a run, or raise StagemeterError.

    Parameters
    ----------
    run : str
        Id or name of the run.
    metrics : mapping
        Metric by stage, in milliseconds; every step of it is a repeat. Stages that are not named are looked for under
        ``time_ms/<stage>`` and under their own name.
    steps : int
        Decode steps of the workload that was measured.
    vision : sequence of str
        Stages of the model before its prefill.
    """
    require_reachable()
    mapping = NameMapping(vision)
    with store_errors():
        found = find_run(run)
        if found.data.tags.get(KIND) == PROFILE:
            raise StagemeterError(f"run {found.info.run_id}: is a profiling run already. Pair it by `stagemeter mfu`")
        logged = found.data.metrics
        for stage, metric in metrics.items():
            if stage not in mapping.stages:
                raise StagemeterError(f"--map {stage}={metric}: no such stage. Known are {', '.join(mapping.stages)}")
            if metric not in logged:
                close = difflib.get_close_matches(metric, logged, n=3) or sorted(logged)[:5]
                raise StagemeterError(
                    f"--map {stage}={metric}: run {found.info.run_id} has no metric {metric!r}. "
                    f"It has {', '.join(close) or 'none at all'}"
                )
        chosen = dict(metrics)
        for stage in mapping.stages:
            for metric in (f"time_ms/{stage}", stage):
                if metric in logged:
                    chosen.setdefault(stage, metric)
        if not chosen:
            raise StagemeterError(
                f"run {found.info.run_id}: has no metric that is named as a stage is. Name them, as in "
                "--map prefill=my/metric"
            )
        client = mlflow.MlflowClient()
        times = {
            stage: [point.value for point in client.get_metric_history(found.info.run_id, metric)]
            for stage, metric in chosen.items()
        }
    profile = profile_of_times(times, source=f"metrics of run {found.info.run_id}", steps=steps, mapping=mapping)
    taken = ", ".join(f"{stage} from {metric}" for stage, metric in chosen.items())
    notes = (f"times were taken as milliseconds: {taken}", *profile.notes)
    device = found.data.tags.get(CONTEXT_DEVICE)
    if device is None:
        return replace(profile, notes=notes)
    said = f"the device is the accelerator of the machine that the run was started on, {device}"
    return replace(profile, notes=(*notes, said), hardware={**profile.hardware, "device": device})
