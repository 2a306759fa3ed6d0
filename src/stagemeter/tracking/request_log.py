"""Costs of a log of requests as an MLflow run, and a table of them. The metrics are apart from those of one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.metrics import in_runs, log_values
from stagemeter.core.params import as_params
from stagemeter.core.workload import stable_hash
from stagemeter.export.requests import request_files, requests_note, swept_note
from stagemeter.export.sweep import table_csv
from stagemeter.tracking.document import log_document, metrics_now
from stagemeter.tracking.labels import ARCHITECTURE_HASH, LOG, MODEL, SWEEP, VERSIONS, in_words
from stagemeter.tracking.store import store_errors

#: Fields of the document that are params, beside those of the log.
_PARAMS = ("model", "dtype", "kv_cache_dtype", "chunk_tokens", "requests")


def log_requests(run_id: str, costs: Mapping[str, Any]) -> None:
    """Log the costs of a log of requests to a run."""
    log = costs["log"]
    params = {name: costs[name] for name in _PARAMS} | {"log": log["name"], "log_sha256": log["sha256"]}
    tags = {
        MODEL: costs["model"],
        ARCHITECTURE_HASH: costs["architecture_hash"],
        MLFLOW_RUN_NOTE: requests_note(costs),
        VERSIONS: in_words(costs["versions"]),
    }
    with store_errors():
        log_document(
            run_id,
            LOG,
            stable_hash(costs),
            params=as_params(params | {"log_format": log["format"]}),
            metrics=metrics_now(in_runs(log_values(costs))),
            tags=tags,
            files=dict(request_files(costs)),
        )


def log_swept(
    run_id: str,
    settings: Mapping[str, str],
    log: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    table: Path,
) -> None:
    """Log the sweep of a log to a run: its settings as params, and its table."""
    params = {**settings, "log": log["name"], "log_sha256": log["sha256"]}
    with store_errors():
        log_document(
            run_id,
            SWEEP,
            stable_hash(params),
            params=as_params(params),
            metrics=metrics_now({"sweep/workloads": float(len(rows))}),
            tags={MODEL: str(rows[0]["model"]), MLFLOW_RUN_NOTE: swept_note(rows, log["name"], notes)},
            files={table.name: table.read_bytes(), **table_csv(table)},
        )
