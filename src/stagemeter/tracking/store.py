"""The MLflow store: whether it can be reached, and where its pages are."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import requests
from mlflow.entities import RunInfo
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from stagemeter.core.addresses import redactor, secrets_of, shown_address
from stagemeter.core.errors import TrackingError
from stagemeter.tracking.patience import (
    VARIABLE,
    OutOfPatienceError,
    in_time,
    is_out_of_patience,
    patience_with,
    store_timeout,
)
from stagemeter.tracking.views import PARAMETER, view_of

logger = logging.getLogger(__name__)

#: Seconds in which a tracking server has to answer a health check.
_PATIENCE = 5
#: Stores that are opened when they are used.
_FILES = ("sqlite:", "file:")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the store into `TrackingError`, with its address, its answer and what to do."""
    address = mlflow.get_tracking_uri()
    with patience_with(address):
        try:
            yield
        except (MlflowException, requests.RequestException, SQLAlchemyError, OSError, ModuleNotFoundError) as error:
            if is_out_of_patience(address):
                raise _silent(address) from error
            raise TrackingError(
                f"MLFLOW_TRACKING_URI: the MLflow store at {shown_address(address)} refused: {_reason(error)}. "
                "Mend the store, or name another one"
            ) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error, without a full stop and the secrets of the store's address."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redactor(secrets_of(os.environ, [mlflow.get_tracking_uri()]))(lines[0].rstrip(". "))


def _silent(address: str) -> TrackingError:
    return TrackingError(
        f"MLFLOW_TRACKING_URI: the MLflow store at {shown_address(address)} answered nothing of use for "
        f"{store_timeout():g} s. See whether it works, or give it longer by --store-timeout or {VARIABLE}"
    )


def require_reachable() -> None:
    """Make sure that a store answers, without the minutes of MLflow's own retries, or raise TrackingError.

    Stores that are files are not checked: they are opened when they are used.
    """
    address = mlflow.get_tracking_uri()
    shown = shown_address(address)
    if address.startswith(("http://", "https://")):
        health = f"{address.partition('?')[0].rstrip('/')}/health"
        try:
            answer = in_time(lambda: requests.get(health, timeout=_PATIENCE), min(2 * _PATIENCE, store_timeout()))
        except (requests.RequestException, ValueError) as error:
            raise TrackingError(
                f"MLFLOW_TRACKING_URI: no MLflow server answers at {shown} ({type(error).__name__}). Start one, or "
                "give the address of one that runs"
            ) from error
        if answer.status_code >= 500:
            raise TrackingError(
                f"MLFLOW_TRACKING_URI: the MLflow server at {shown} answers {answer.status_code} {answer.reason}. "
                "Start it again, or name another one"
            )
    elif "://" in address and not address.startswith(_FILES):
        _require_database(address, shown)


def _require_database(address: str, shown: str) -> None:
    """Connect to a database once: MLflow would try ten times, for minutes (``create_sqlalchemy_engine_with_retry``)."""
    try:
        if make_url(address).get_backend_name() not in DATABASE_ENGINES:
            return
        engine = create_engine(address, poolclass=NullPool)
        in_time(lambda: engine.connect().close(), store_timeout())
    except OutOfPatienceError as error:
        raise _silent(address) from error
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: no connection to the MLflow store at {shown} ({_reason(error)}). Start its server, "
            "or name another store"
        ) from error


def charts_link(experiment_id: str, view: str | None = None) -> tuple[str, str | None]:
    """Return the page that shows an experiment's runs as charts, and the command that serves it, if one is needed.

    The plain address of an experiment opens a view of MLflow 3 in which runs and charts are hidden. `view` is the key
    of a saved view, see `stagemeter.tracking.views`.
    """
    host, command = _pages()
    shown = "" if view is None else f"&{PARAMETER}={view}"
    address = f"{host}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART{shown}"
    return address, command


def run_messages(run: RunInfo) -> list[str]:
    """Return messages about a logged run: its page, the charts beside others, and the command that serves them.

    The view of these charts is saved in the run's experiment.
    """
    host, command = _pages()
    charts, _ = charts_link(run.experiment_id, _saved_view(run))
    messages = [f"run {run.run_id}: {host}/{run_link(run)}", f"beside others: {charts}"]
    if command is not None:
        messages.append(f"to see them: {command}")
    return messages


def _saved_view(run: RunInfo) -> str | None:
    """Save the view of a run's charts. Where that is not allowed, or another process does it now, do without."""
    try:
        with store_errors():
            return view_of(mlflow.MlflowClient().get_run(run.run_id))
    except TrackingError as error:
        logger.warning("charts come in MLflow's own order: %s", error)
        return None


def _pages() -> tuple[str, str | None]:
    """Return the address of MLflow's pages, and the command that serves them, if one is needed."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        return shown_address(uri).partition("?")[0].rstrip("/"), None
    return "http://127.0.0.1:5000", f"mlflow ui --backend-store-uri {shlex.quote(shown_address(uri))}"


def store_address() -> str:
    """Return the address of the store without its password."""
    return shown_address(mlflow.get_tracking_uri())


def run_link(run: RunInfo) -> str:
    """Return the page of a run, relative to MLflow's pages."""
    # Without the type, MLflow 3 shows the run in its view for generative AI.
    return f"#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
