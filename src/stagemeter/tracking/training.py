"""Metrics of a training that is under way, in the run that is active."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def run_is_active() -> bool:
    """Whether there is a run that metrics could be logged to."""
    # Without a run nobody has imported MLflow, which takes seconds.
    mlflow = sys.modules.get("mlflow")
    return mlflow is not None and mlflow.active_run() is not None


def log_to_active_run(metrics: Mapping[str, float], step: int) -> None:
    """Log metrics of a step to the active run, if there is one; the training does not wait for the store.

    Parameters
    ----------
    metrics : mapping
        Values by name.
    step : int
        The step.
    """
    if metrics and run_is_active():
        import mlflow

        mlflow.log_metrics(dict(metrics), step=step, synchronous=False)
