"""Metrics of a training that is under way, in the run that is active."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def log_to_active_run(metrics: Mapping[str, float], step: int) -> None:
    """Log metrics of a step to the active run, if there is one; the training does not wait for the store.

    Parameters
    ----------
    metrics : mapping
        Values by name.
    step : int
        The step.
    """
    # Without a run nobody has imported MLflow, which takes seconds.
    mlflow = sys.modules.get("mlflow")
    if metrics and mlflow is not None and mlflow.active_run() is not None:
        mlflow.log_metrics(dict(metrics), step=step, synchronous=False)
