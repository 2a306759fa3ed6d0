"""Log reports that were made without a store, each once."""

from __future__ import annotations

import mlflow

from stagemeter.core.report import Report
from stagemeter.core.workload import stable_hash
from stagemeter.tracking.labels import KIND, REPORT_HASH, STATIC, WORKLOAD_HASH, workload_name
from stagemeter.tracking.log import log_static_report
from stagemeter.tracking.run import tracked_run
from stagemeter.tracking.runs import all_experiments, search_runs
from stagemeter.tracking.store import require_reachable, store_errors


def upload_report(report: Report, experiment: str | None = None) -> tuple[str, bool]:
    """Log a report unless a run holds it already. Return the run's id, and whether it was logged now.

    Log to the experiment, and search it. None: log to MLflow's default, and search all.
    """
    require_reachable()
    metadata = report["metadata"]
    # Finished runs only: an interrupted run does not hold the whole report.
    condition = (
        f"tags.`{WORKLOAD_HASH}` = '{metadata['workload_hash']}' and tags.`{REPORT_HASH}` = '{stable_hash(report)}' "
        f"and tags.`{KIND}` = '{STATIC}' and attributes.status = 'FINISHED'"
    )
    with store_errors():
        found = next(search_runs(_places(experiment), condition), None)
    if found is not None:
        return str(found.info.run_id), False
    with tracked_run(None, workload_name(metadata["model"], metadata["workload"]), experiment) as run:
        log_static_report(report)
    return str(run.run_id), True


def _places(experiment: str | None) -> list[str]:
    """Return the ids of the experiments to search."""
    if experiment is None:
        return all_experiments()
    found = mlflow.MlflowClient().get_experiment_by_name(experiment)
    return [] if found is None else [str(found.experiment_id)]
