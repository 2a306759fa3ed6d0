"""Runs as subjects of a comparison, and comparisons as runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlflow
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.comparing.subject import Subject, subject_of_profile, subject_of_report
from stagemeter.core.errors import StagemeterError
from stagemeter.core.metrics import comparison_values, in_runs, module_values, pairing_values
from stagemeter.core.report_upgrade import earlier_note, is_earlier
from stagemeter.core.workload import stable_hash
from stagemeter.export.comparison import comparison_description
from stagemeter.modules.report import EARLIER_SCHEMAS, MODULE_SCHEMA_VERSION
from stagemeter.tracking.document import log_document
from stagemeter.tracking.labels import COMPARISON, KIND, LOG, MODULE, PROFILE, SCHEMA, STATIC, STATIC_RUN
from stagemeter.tracking.runs import (
    credited_by,
    find_experiment,
    find_run,
    load_module_report,
    load_pairing,
    load_profile,
    load_report,
    require_kind,
    search_runs,
)
from stagemeter.tracking.store import require_reachable, run_link, store_errors

#: Tag of a comparison with its runs, and tag of these runs with their comparisons.
COMPARED_RUNS, COMPARISONS = "stagemeter.compared_runs", "stagemeter.comparison_runs"
#: Kinds of runs that can be compared.
_COMPARED = (STATIC, PROFILE, MODULE)
_EARLIER = (
    "{name} has schema {schema}, which counts executed FLOPs. Its model FLOPs are known where fused attention has no "
    "backward pass"
)


def subjects_of_runs(names: Sequence[str]) -> list[Subject]:
    """Find runs with counts or times by id, unique beginning of an id, or name, or raise StagemeterError."""
    require_reachable()
    with store_errors():
        return [subject_of_run(find_run(name)) for name in names]


def subjects_of_experiment(experiment: str, condition: str | None) -> list[Subject]:
    """Find the runs of an experiment that hold counts or times, the oldest first, or raise StagemeterError.

    The condition is a filter as MLflow's search takes it, such as ``params.mode = 'tiny'``.
    """
    require_reachable()
    with store_errors():
        found = find_experiment(experiment)
        try:
            answering = list(search_runs([found], condition or ""))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
                raise
            raise StagemeterError(
                f"--filter {condition!r}: MLflow does not understand it ({error.message}). Write such as "
                "params.mode = 'tiny'"
            ) from None
        runs = [run for run in answering if run.data.tags.get(KIND) in _COMPARED]
        if not runs:
            of = f" that answers to {condition!r}" if condition else ""
            raise StagemeterError(f"experiment {experiment!r}: holds no run of Stagemeter{of}. Name another one")
        return [subject_of_run(run) for run in reversed(runs)]


def subject_of_run(run: Run) -> Subject:
    """Make a subject of the documents of a run, or raise StagemeterError without counts or times.

    Metrics of a run are fewer, and doubles. Its params can be of other values, see `missing_params`.
    """
    if run.data.tags.get(KIND) == LOG:
        raise StagemeterError(
            f"run {run.info.run_id}: holds the costs of a log, and requests are compared one by one. Compare logs in "
            "MLflow, by their metrics log_flops and log_tokens"
        )
    tags, kind = run.data.tags, require_kind(run, _COMPARED, "Give runs of `stagemeter analyze` or of profiles")
    name, schema = run.info.run_name or run.info.run_id, tags.get(SCHEMA, "1.0")
    if kind == PROFILE:
        subject = _profile(run, name)
    elif kind == STATIC:
        subject = subject_of_report(load_report(run), name, run.info.run_id)
        notes = (f"{name}: {earlier_note(schema)}",) if is_earlier(schema) else ()
        subject = replace(subject, notes=notes)
    else:
        document = load_module_report(run)
        notes = (_EARLIER.format(name=name, schema=schema),) if schema.partition(".")[0] in EARLIER_SCHEMAS else ()
        subject = Subject(
            name=name,
            source=run.info.run_id,
            kind=MODULE,
            schema_version=MODULE_SCHEMA_VERSION,
            notes=notes,
            values=module_values(document),
            configuration=run.data.params,
            environment=document["metadata"]["versions"],
        )
    return replace(subject, run_id=run.info.run_id, link=run_link(run.info))


def _profile(run: Run, name: str) -> Subject:
    """Make a subject of a profiling run, and of its pairing if it has one."""
    subject = subject_of_profile(load_profile(run), name, run.info.run_id)
    if STATIC_RUN not in run.data.tags:
        return subject
    pairing = load_pairing(run)
    basis, earlier_pairing = credited_by(run)
    return replace(
        subject,
        values={**subject.values, **pairing_values(pairing)},
        environment={**subject.environment, "peak": pairing["peak"]["name"]},
        basis=basis,
        earlier_pairing=earlier_pairing,
    )


def log_comparison(run_id: str, comparison: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Log a comparison to a run of its own, and tag the compared runs with it.

    Files are contents by name.
    """
    parts = [subject["run_id"] for subject in comparison["subjects"] if subject["run_id"] is not None]
    client = mlflow.MlflowClient()
    with store_errors():
        log_document(
            run_id,
            COMPARISON,
            stable_hash(comparison),
            metrics=_metrics(comparison),
            tags={
                SCHEMA: comparison["schema_version"],
                COMPARED_RUNS: ",".join(parts),
                MLFLOW_RUN_NOTE: comparison_description(comparison),
            },
            files=files,
        )
        for part in parts:
            listed = [name for name in client.get_run(part).data.tags.get(COMPARISONS, "").split(",") if name]
            client.set_tag(part, COMPARISONS, ",".join([*listed, run_id]))


def _metrics(comparison: Mapping[str, Any]) -> list[Metric]:
    """Return the ratios to the baseline. Each other subject is a step."""
    others = [number for number in range(len(comparison["subjects"])) if number != comparison["baseline"]]
    return [
        Metric(name, value, 0, step)
        for step, number in enumerate(others)
        for name, value in in_runs(comparison_values(comparison, number)).items()
    ]
