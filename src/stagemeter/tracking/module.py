"""The report of any module becomes an MLflow run."""

from __future__ import annotations

import time

import mlflow
from mlflow.entities import Metric, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.metrics import module_values
from stagemeter.core.params import as_params, module_params
from stagemeter.core.workload import stable_hash
from stagemeter.export.module import module_files, module_markdown
from stagemeter.modules.report import MODULE_SCHEMA_VERSION, ModuleReport
from stagemeter.tracking.artifacts import log_files
from stagemeter.tracking.holding import missing_params, require_room
from stagemeter.tracking.labels import (
    ARCHITECTURE_HASH,
    KIND,
    MODEL,
    MODULE,
    REPORT_HASH,
    SCHEMA,
    VERSION,
    WORKLOAD_HASH,
)

#: Metrics that a server takes at a time (mlflow/utils/validation.py, ``MAX_METRICS_PER_BATCH``).
_MOST_METRICS = 1000


def log_module_report(run_id: str, report: ModuleReport) -> None:
    """Log a report of any module to a run: params, metrics, tags, description and files.

    Parameters
    ----------
    run_id : str
        The run.
    report : ModuleReport
        What `stagemeter.analyze` returned.
    """
    client, document = mlflow.MlflowClient(), report.to_dict()
    document_hash = stable_hash(document)
    params, otherwise = missing_params(require_room(run_id, MODULE, document_hash), as_params(module_params(document)))
    now = int(time.time() * 1000)
    tags = {
        KIND: MODULE,
        MODEL: report.model,
        SCHEMA: MODULE_SCHEMA_VERSION,
        WORKLOAD_HASH: report.workload_hash,
        ARCHITECTURE_HASH: report.architecture_hash,
        REPORT_HASH: document_hash,
        MLFLOW_RUN_NOTE: module_markdown(report),
    }
    tags |= {f"{VERSION}{package}": version for package, version in report.versions.items()}
    metrics = [Metric(name, value, now, 0) for name, value in module_values(document).items()]
    for start in range(_MOST_METRICS, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
    client.log_batch(
        run_id,
        metrics=metrics[:_MOST_METRICS],
        params=params,
        tags=[*(RunTag(name, value) for name, value in tags.items()), *otherwise],
    )
    log_files(run_id, module_files(report))
