"""The MLflow store: whether it can be reached, and where its pages are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.entities import Param, RunInfo
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from stagemeter.errors import TrackingError

#: Seconds in which a tracking server has to answer that it is there.
_PATIENCE = 5


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what goes wrong with the store inside of the block into `TrackingError`.

    Raises
    ------
    TrackingError
        With the store's address, what it answered, and what to do.
    """
    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError, ModuleNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrackingError(
            f"the MLflow store at {store_address()} refused: {reason}; see MLFLOW_TRACKING_URI"
        ) from error


def require_reachable() -> None:
    """Make sure that a tracking server answers, without the minutes that MLflow's own retries take.

    Raises
    ------
    TrackingError
        If it does not. Stores that are files or databases are opened when they are used.
    """
    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_PATIENCE)
    except requests.RequestException as error:
        raise TrackingError(
            f"no MLflow server answers at {_plain(uri)} ({type(error).__name__}): start one, or "
            "set MLFLOW_TRACKING_URI to where one runs"
        ) from error
    if answer.status_code >= 500:
        raise TrackingError(f"the MLflow server at {_plain(uri)} answers {answer.status_code} {answer.reason}")


def missing_params(client: mlflow.MlflowClient, run_id: str, values: Mapping[str, str]) -> list[Param]:
    """Those of some params that a run does not have yet.

    ``mlflow run`` has logged its parameters, and a param cannot be logged again with another spelling.
    """
    known = client.get_run(run_id).data.params
    return [Param(key, value) for key, value in values.items() if key not in known]


def charts_link(experiment_id: str) -> tuple[str, str | None]:
    """Return the page that shows an experiment's runs as charts, and the command that serves it, if one is needed.

    The plain address of an experiment opens a view of MLflow 3 in which runs and charts are hidden.
    """
    host, command = _pages()
    return f"{host}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART", command


def run_messages(run: RunInfo) -> list[str]:
    """What to tell the user about a run that was logged: where to see it and others, and how to serve the pages."""
    host, command = _pages()
    charts, _ = charts_link(run.experiment_id)
    messages = [f"run {run.run_id}: {host}/{run_link(run)}", f"beside others: {charts}"]
    if command is not None:
        messages.append(f"to see them: {command}")
    return messages


def _pages() -> tuple[str, str | None]:
    """Where MLflow's pages are, and the command that serves them, if one is needed."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        return _plain(uri).rstrip("/"), None
    return "http://127.0.0.1:5000", f"mlflow ui --backend-store-uri {_plain(uri)}"


def store_address() -> str:
    """Return the address of the store as it can be shown: without a password."""
    return _plain(mlflow.get_tracking_uri())


def run_link(run: RunInfo) -> str:
    """Return the page of a run, from wherever MLflow's pages are served."""
    # Without the type, MLflow 3 shows runs reached by a link in its view for generative AI.
    return f"#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"


def _plain(uri: str) -> str:
    """Hide the password in an address."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri
