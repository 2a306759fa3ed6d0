"""A watch of serving engines as an MLflow run: time series while it lasts, and its profile at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, RunTag
from mlflow.system_metrics.metrics import gpu_monitor
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.errors import TrackingError
from stagemeter.core.metrics import interval_values
from stagemeter.profiling.readers.energy import Energy, energy_of_power
from stagemeter.profiling.readers.prometheus import RestartedError
from stagemeter.tracking.document import MOST_METRICS
from stagemeter.tracking.patience import ask_again
from stagemeter.tracking.store import store_errors

#: The addresses that a run watched.
WATCHED = "stagemeter.watched"
#: Ending of the metric of a GPU's power.
_WATTS = "_power_usage_watts"
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


class SystemPower:
    """The GPUs of this machine, as MLflow's system metrics measure their power.

    `monitor` is MLflow's ``GPUMonitor`` (mlflow/system_metrics/metrics/gpu_monitor.py, 3.17). It asks NVIDIA's driver,
    and its numbers are logged as ``system/gpu_<number>_power_usage_watts``.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor, self._at = monitor, time.monotonic()
        self._watts = self._measure()

    @property
    def gpus(self) -> int:
        """Number of GPUs whose power is known."""
        return len(self._watts)

    def read(self) -> Energy:
        """Return the energy since the last reading: the mean of the power at both ends over the time."""
        at, before = time.monotonic(), self._watts
        seconds = at - self._at
        self._watts, self._at = self._measure(), at
        if not before or before.keys() != self._watts.keys():
            raise RestartedError("system metrics: MLflow has no power of each GPU. See whether nvidia-smi shows it")
        return energy_of_power(before, self._watts, seconds)

    def _measure(self) -> dict[str, float]:
        self._monitor.clear_metrics()
        self._monitor.collect_metrics()
        measured = self._monitor.aggregate_metrics()
        return {name: watts for name, watts in measured.items() if name.endswith(_WATTS)}


def system_power() -> list[SystemPower]:
    """Return the GPUs of this machine where MLflow logs system metrics and can measure them."""
    variables: Any = mlflow.environment_variables  # MLflow's functions have no annotations.
    monitors: Any = gpu_monitor
    if not variables.MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return []
    try:
        return [SystemPower(monitors.GPUMonitor())]
    except (ImportError, RuntimeError):
        # There is no NVIDIA GPU, or no nvidia-ml-py. MLflow logs none of their metrics then.
        return []


def describe(run_id: str, text: str) -> None:
    """Describe a run that has no profile."""
    with store_errors():
        mlflow.MlflowClient().log_batch(run_id, tags=[RunTag(MLFLOW_RUN_NOTE, text)])
