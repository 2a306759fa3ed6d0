"""A document becomes the content of an MLflow run: params, metrics, tags, description and files.

A run holds one document, since the params of a run cannot change.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from stagemeter.core.errors import StagemeterError, StagemeterWarning
from stagemeter.core.params import NOT_GIVEN
from stagemeter.core.scratch import scratch_folder
from stagemeter.tracking.labels import KIND, PARAMS_OTHERWISE, REPORT_HASH

#: Metrics that a server takes at once (mlflow/utils/validation.py, ``MAX_METRICS_PER_BATCH``).
MOST_METRICS = 1000
_WAY_OUT = "Log it to a run of its own: end this run first, or open a nested one, mlflow.start_run(nested=True)"


def log_document(
    run_id: str,
    kind: str,
    document_hash: str,
    *,
    metrics: Sequence[Metric],
    tags: Mapping[str, str],
    files: Mapping[str, str | bytes],
    params: Mapping[str, str] | None = None,
    tables: Sequence[str] = (),
) -> None:
    """Log a document to a run, in few calls. Refuse a run that holds another document.

    The kind is one of `stagemeter.tracking.labels`. Tags come without kind and hash, files are contents by name, and
    `tables` are the files that MLflow's pages show as tables. Params that the run has already are not logged again.
    """
    client, run = mlflow.MlflowClient(), require_room(run_id, kind, document_hash)
    missing, otherwise = missing_params(run, params or {})
    all_tags = {KIND: kind, REPORT_HASH: document_hash, **tags, **otherwise, **_tables_tag(run, tables)}
    for start in range(MOST_METRICS, len(metrics), MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])
    client.log_batch(
        run_id,
        metrics=metrics[:MOST_METRICS],
        params=missing,
        tags=[RunTag(key, value) for key, value in all_tags.items()],
    )
    log_files(run_id, files)


def metrics_now(values: Mapping[str, float]) -> list[Metric]:
    """Return values by name as metrics with the current time."""
    now = int(time.time() * 1000)
    return [Metric(name, value, now, 0) for name, value in values.items()]


def log_files(run_id: str, contents: Mapping[str, str | bytes]) -> None:
    """Log files to a run, given their contents by name. Text becomes UTF-8.

    The contents come from memory: another process may have replaced what is on the disk.
    """
    # MLflow takes only files, so they go through a folder of this process.
    with scratch_folder() as folder:
        for name, content in contents.items():
            data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
            (folder / name).write_bytes(data)
        mlflow.MlflowClient().log_artifacts(run_id, str(folder))


def _tables_tag(run: Run, names: Sequence[str]) -> dict[str, str]:
    """Return the tag by which MLflow's pages find tables, as `mlflow.log_table` sets it."""
    if not names:
        return {}
    tables = [{"path": name, "type": "table"} for name in names]
    listed = json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    return {MLFLOW_LOGGED_ARTIFACTS: json.dumps([*(one for one in listed if one not in tables), *tables])}


def require_room(run_id: str, kind: str, document_hash: str | None = None) -> Run:
    """Return a run, or refuse one that holds another document than that of the hash."""
    run = mlflow.MlflowClient().get_run(run_id)
    held, held_hash = run.data.tags.get(KIND), run.data.tags.get(REPORT_HASH)
    if held is None or (held == kind and document_hash is not None and held_hash == document_hash):
        return run
    which = f" ({REPORT_HASH} {held_hash}, now {document_hash})" if held == kind and document_hash is not None else ""
    raise StagemeterError(f"run {run_id}: holds a {held} document already, and not this {kind} one{which}. {_WAY_OUT}")


def missing_params(run: Run, values: Mapping[str, str]) -> tuple[list[Param], dict[str, str]]:
    """Return the params that a run lacks, and a tag with those that it has with another value.

    ``mlflow run`` logs its parameters, and MLflow refuses another value for a param. Where a value differs, and not
    only its spelling, a warning names both. The tag names the value that the metrics belong to; there is none if all
    agree. A param that was not given contradicts nothing.
    """
    known = run.data.params
    params = [Param(key, value) for key, value in values.items() if key not in known]
    otherwise = {
        key: value
        for key, value in values.items()
        if key in known and known[key] != NOT_GIVEN and not _same(known[key], value)
    }
    if otherwise:
        both = ", ".join(f"{key} is {known[key]!r} there and {value!r} here" for key, value in otherwise.items())
        warnings.warn(
            f"run {run.info.run_id} has params of other values than what is logged to it: {both}. MLflow keeps the "
            f"first; the metrics are of the latter, and the tag {PARAMS_OTHERWISE} says so",
            StagemeterWarning,
            stacklevel=2,
        )
    said = "; ".join(f"{key}: {value}" for key, value in otherwise.items())
    return params, {PARAMS_OTHERWISE: said} if otherwise else {}


def _same(one: str, other: str) -> bool:
    """Tell whether two spellings mean one value: ``1`` and ``1.0``, ``True`` and ``true``."""
    if one.strip().lower() == other.strip().lower():
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False
