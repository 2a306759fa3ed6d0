"""A time limit for everything that is asked of a store, retries included."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from stagemeter.core import waiting
from stagemeter.core.errors import StagemeterError

#: Default in seconds.
DEFAULT = 30.0
#: The environment variable that overrides it. ``--store-timeout`` sets it.
VARIABLE = "STAGEMETER_STORE_TIMEOUT"
Result = TypeVar("Result")


def store_timeout() -> float:
    """Return the seconds for which a store may stay silent. Refuse a setting that is not a positive number."""
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text) if text else DEFAULT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise StagemeterError(f"{VARIABLE}: {text!r} is no number of seconds. Give one above 0, such as 30")
    return seconds


class OutOfPatienceError(requests.exceptions.Timeout):
    """A store did not answer in time."""


def in_time(function: Callable[[], Result], seconds: float) -> Result:
    """Call a function that asks a store; raise `OutOfPatienceError` where it takes longer."""
    return waiting.in_time(function, seconds, _late())


def _late() -> OutOfPatienceError:
    return OutOfPatienceError(f"it answered nothing for {store_timeout():g} s ({VARIABLE})")


class _Patience:
    """The time for which a server has been silent."""

    def __init__(self) -> None:
        self.users = 0
        self._since: float | None = None
        self._failed = 0.0

    def left(self) -> float:
        """Return the seconds that are left. They begin with the first request without an answer."""
        now = time.monotonic()
        # A server that was not asked for this long may be back.
        if self._since is None or now - self._failed > store_timeout():
            self._since = self._failed = now
        return max(0.0, store_timeout() - (now - self._since))

    def answered(self) -> None:
        self._since = None

    def failed(self) -> None:
        self._failed = time.monotonic()

    @property
    def is_over(self) -> bool:
        return self._since is not None and time.monotonic() - self._since >= store_timeout()


#: The patience with each server, by host and port.
_servers: dict[str, _Patience] = {}
_lock = threading.Lock()
_send = requests.Session.send


def _send_in_time(self: requests.Session, request: requests.PreparedRequest, **how: Any) -> requests.Response:
    """Send a request, with the time limit where Stagemeter asks the server now.

    MLflow's own timeout (``MLFLOW_HTTP_REQUEST_TIMEOUT``) is for a single read, which a dripping server never exceeds.
    MLflow asks a failing server for minutes (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``, 7, with a backoff factor of 2,
    mlflow/environment_variables.py). Both settings hold within this time limit.
    """
    patience = _servers.get(_server(request.url or ""))
    if patience is None or not patience.users:
        return _send(self, request, **how)
    left = patience.left()
    # Read the whole answer here, since a server can drip it.
    try:
        if not left:
            raise _late()
        answer = in_time(lambda: _send(self, request, **{**how, "stream": False}), left)
    except BaseException:
        patience.failed()
        raise
    if answer.status_code < 500:
        patience.answered()
    else:
        patience.failed()
    return answer


def _server(address: str) -> str:
    """Return host and port; empty for an invalid address."""
    try:
        return urlsplit(address).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def is_out_of_patience(address: str) -> bool:
    """Tell whether a tracking server has been silent for the whole time limit."""
    patience = _servers.get(_server(address))
    return patience is not None and patience.is_over


def ask_again(address: str) -> None:
    """Give a tracking server the whole time limit anew, however long it has been silent."""
    patience = _servers.get(_server(address))
    if patience is not None:
        patience.answered()


@contextmanager
def patience_with(address: str) -> Iterator[None]:
    """Limit the time that a tracking server may take within the block. Other stores need no limit."""
    if not address.startswith(("http://", "https://")):
        yield
        return
    with _lock:
        patience = _servers.setdefault(_server(address), _Patience())
        patience.users += 1
        requests.Session.send = _send_in_time  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _lock:
            patience.users -= 1
            if not any(each.users for each in _servers.values()):
                requests.Session.send = _send  # type: ignore[method-assign]
