"""Log metrics of a training to the active run."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def run_is_active() -> bool:
    """Tell whether a run is active."""
    # Where a run is active, MLflow is imported already. Importing it takes seconds.
    mlflow = sys.modules.get("mlflow")
    return mlflow is not None and mlflow.active_run() is not None


def log_to_active_run(metrics: Mapping[str, float], step: int) -> None:
    """Log metrics of a step to the active run, if there is one. The training does not wait for the store."""
    if metrics and run_is_active():
        import mlflow

        mlflow.log_metrics(dict(metrics), step=step, synchronous=False)
