"""The MLflow run of a command: it opens before the work, and ends as the work ends."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, RunInfo, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import fluent
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.tracking.patience import patience_with
from stagemeter.tracking.store import require_reachable, store_errors

logger = logging.getLogger(__name__)


@contextmanager
def tracked_run(
    name: str | None, default_name: str, experiment: str | None, own: str, system_metrics: bool = False
) -> Iterator[RunInfo]:
    """Work inside an MLflow run: the one that ``mlflow run`` opened, or a new one.

    The run ends as FINISHED, FAILED after an error, or KILLED after an interrupt. It gets the default name where
    neither `name` nor ``mlflow run`` gives one. A new run goes into the experiment; if it is None, into the active one
    or that of the environment; and where there is none either, into `own`, one of Stagemeter's. Those that are not
    there are made. System metrics are the use of processors, memory and network.
    """
    require_choice(experiment)
    require_reachable()
    with patience_with(mlflow.get_tracking_uri()):
        yield from _in_run(name, default_name, experiment or _own_unless_chosen(own), system_metrics)


def _own_unless_chosen(own: str) -> str | None:
    """Return the name of the own experiment; None where another is chosen, or where names are paths of a workspace."""
    variables = mlflow.environment_variables
    named = (variables.MLFLOW_RUN_ID, variables.MLFLOW_EXPERIMENT_ID, variables.MLFLOW_EXPERIMENT_NAME)
    active = fluent._active_experiment_id is not None or mlflow.active_run() is not None
    paths = mlflow.get_tracking_uri().startswith("databricks")
    return None if active or paths or any(variable.defined for variable in named) else own


def _experiment_id(name: str) -> str:
    """Return the id of an experiment, which is made if it is not there. The active experiment stays as it is."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            # Another process has made it just now.
            return _experiment_id(name)
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise StagemeterError(
            f"experiment {name!r}: was deleted. Name another one, or restore it by `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`"
        )
    return str(found.experiment_id)


def _in_run(name: str | None, default_name: str, experiment: str | None, system_metrics: bool) -> Iterator[RunInfo]:
    with store_errors():
        experiment_id = None if experiment is None else _experiment_id(experiment)
        if system_metrics and not mlflow.environment_variables.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.defined:
            # MLflow's default of ten seconds would miss most requests.
            settings: Any = mlflow
            settings.set_system_metrics_sampling_interval(1)
        run = mlflow.start_run(
            experiment_id=experiment_id, run_name=name or default_name, log_system_metrics=system_metrics or None
        )
    try:
        with store_errors():
            if name is not None or _is_made_up(run.info.run_name or ""):
                mlflow.MlflowClient().update_run(run.info.run_id, name=name or default_name)
        yield run.info
    except BaseException as error:
        try:
            with store_errors():
                _end(RunStatus.KILLED if isinstance(error, KeyboardInterrupt) else RunStatus.FAILED)
        except TrackingError as trouble:
            logger.warning("the run is not marked as ended: %s", trouble)
        raise
    else:
        with store_errors():
            _end(RunStatus.FINISHED)


def _is_made_up(name: str) -> bool:
    """Tell whether MLflow made up the name, such as kindly-fox-123."""
    match = re.fullmatch(r"([a-z]+)-([a-z]+)-\d+", name)
    return match is not None and match[1] in _GENERATOR_PREDICATES and match[2] in _GENERATOR_NOUNS


def require_choice(experiment: str | None) -> None:
    """Refuse to choose an experiment for the run of ``mlflow run``, which has one. The store is not asked."""
    opened = mlflow.active_run() is None and mlflow.environment_variables.MLFLOW_RUN_ID.defined
    if experiment is not None and opened:
        raise StagemeterError(
            f"--experiment {experiment!r}: this run belongs to `mlflow run` already. Use its own --experiment-name"
        )


@contextmanager
def failure_recorded(name: str | None, default_name: str, experiment: str | None, own: str) -> Iterator[None]:
    """Work before a run is opened. A failure is recorded as a run, see `tracked_run`."""
    try:
        yield
    except BaseException as error:
        try:
            with tracked_run(name, default_name, experiment, own):
                raise
        except TrackingError as trouble:
            logger.warning("that it failed is not in the store: %s", trouble)
            raise error from None


def _end(status: int) -> None:
    mlflow.end_run(RunStatus.to_string(status))
