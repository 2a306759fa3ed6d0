"""The MLflow run that a command works in: opened before the work, and ended as the work ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import RunInfo, RunStatus
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from stagemeter.errors import StagemeterError
from stagemeter.tracking.store import require_reachable, store_errors


@contextmanager
def tracked_run(
    name: str | None, default_name: str, experiment: str | None, system_metrics: bool = False
) -> Iterator[RunInfo]:
    """Work inside of an MLflow run.

    The run is the one that ``mlflow run`` opened, or a new one. It ends as FINISHED; as FAILED if an error leaves the
    block; as KILLED if the block is interrupted.

    Parameters
    ----------
    name : str or None
        Name of the run.
    default_name : str
        Name where none is given and ``mlflow run`` was not given one either.
    experiment : str or None
        Experiment to put a new run in; None for MLflow's own choice.
    system_metrics : bool
        Whether MLflow takes note of the use of processors, memory and network meanwhile.

    Yields
    ------
    mlflow.entities.RunInfo
        The run.

    Raises
    ------
    TrackingError
        If the store cannot be reached or refuses.
    """
    require_reachable()
    with store_errors():
        if experiment is not None:
            _choose_experiment(experiment)
        if system_metrics and not mlflow.environment_variables.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.defined:
            # MLflow's own ten seconds would see nothing of most requests.
            settings: Any = mlflow
            settings.set_system_metrics_sampling_interval(1)
        run = mlflow.start_run(run_name=name or default_name, log_system_metrics=system_metrics or None)
    try:
        with store_errors():
            if name is not None or _is_made_up(run.info.run_name or ""):
                mlflow.MlflowClient().update_run(run.info.run_id, name=name or default_name)
        yield run.info
    except KeyboardInterrupt:
        _end(RunStatus.KILLED)
        raise
    except BaseException:
        _end(RunStatus.FAILED)
        raise
    else:
        with store_errors():
            _end(RunStatus.FINISHED)


def _is_made_up(name: str) -> bool:
    """Whether MLflow made up the name, such as kindly-fox-123, because none was given."""
    match = re.fullmatch(r"([a-z]+)-([a-z]+)-\d+", name)
    return match is not None and match[1] in _GENERATOR_PREDICATES and match[2] in _GENERATOR_NOUNS


def _choose_experiment(name: str) -> None:
    if mlflow.active_run() is None and mlflow.environment_variables.MLFLOW_RUN_ID.defined:
        # `mlflow run` opened the run already, and a run does not change its experiment.
        raise StagemeterError(
            f"--experiment {name!r}: this run belongs to `mlflow run` already; use its own --experiment-name"
        )
    mlflow.set_experiment(name)


def _end(status: int) -> None:
    mlflow.end_run(RunStatus.to_string(status))
