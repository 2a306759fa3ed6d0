"""A watch of serving engines as an MLflow run: time series while it lasts, and its profile at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.errors import TrackingError
from stagemeter.core.metrics import interval_values
from stagemeter.tracking.document import MOST_METRICS
from stagemeter.tracking.patience import ask_again
from stagemeter.tracking.store import store_errors

#: The addresses that a run watched.
WATCHED = "stagemeter.watched"
#: Seconds between two attempts at a store that refused, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 300.0


class Series:
    """The time series of a run, one step an interval. What the store does not take is kept and sent later."""

    def __init__(self, run_id: str, addresses: Sequence[str]) -> None:
        self._run_id, self._addresses = run_id, addresses
        self._kept: list[Metric] = []
        self._pause, self._next = 0.0, 0.0

    def begin(self) -> None:
        """Tag the run with what it watches."""
        with store_errors():
            mlflow.MlflowClient().set_tag(self._run_id, WATCHED, " ".join(self._addresses))

    def add(self, interval: Mapping[str, Any]) -> str | None:
        """Log an interval as the next step. Return why the store did not take it, the first time that it does not."""
        now = int(interval["ended"] * 1000)
        values = interval_values(interval)
        self._kept += [Metric(name, value, now, interval["number"]) for name, value in values.items()]
        if time.monotonic() < self._next:
            return None
        waited = bool(self._pause)
        try:
            self.send()
        except TrackingError as error:
            self._pause = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE)
            self._next = time.monotonic() + self._pause
            return None if waited else str(error)
        self._pause = 0.0
        return None

    def send(self) -> None:
        """Send all that the store does not have yet. A step that arrives twice counts once."""
        client = mlflow.MlflowClient()
        ask_again(mlflow.get_tracking_uri())
        with store_errors():
            while self._kept:
                client.log_batch(self._run_id, metrics=self._kept[:MOST_METRICS])
                del self._kept[:MOST_METRICS]


def describe(run_id: str, text: str) -> None:
    """Describe a run that has no profile."""
    with store_errors():
        mlflow.MlflowClient().log_batch(run_id, tags=[RunTag(MLFLOW_RUN_NOTE, text)])
