"""How long a store may keep its caller waiting: one number for all that is asked of it, retries included."""

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

#: Seconds, and the environment variable that says otherwise; ``--store-timeout`` sets it.
DEFAULT, VARIABLE = 30.0, "STAGEMETER_STORE_TIMEOUT"
Result = TypeVar("Result")


def store_timeout() -> float:
    """Seconds for which a store may answer nothing.

    Raises
    ------
    StagemeterError
        If the environment variable is no positive number.
    """
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text) if text else DEFAULT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise StagemeterError(f"{VARIABLE}: {text!r} is no number of seconds. Give one above 0, such as 30")
    return seconds


class OutOfPatienceError(requests.exceptions.Timeout):
    """A store answered nothing in time."""


def in_time(function: Callable[[], Result], seconds: float) -> Result:
    """Call a function that asks a store, and raise `OutOfPatienceError` where it takes longer."""
    late = OutOfPatienceError(f"it answered nothing for {store_timeout():g} s ({VARIABLE})")
    return waiting.in_time(function, seconds, late)


class _Patience:
    """The time since which a server has answered nothing; what is asked of it while it answers costs none."""

    def __init__(self) -> None:
        self.users = 0
        self._since: float | None = None
        self._failed = 0.0

    def left(self) -> float:
        """Seconds until it is over, which begin with the first question that is not answered."""
        now = time.monotonic()
        # Of a server that nobody has asked for as long, nobody knows whether it is still gone.
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


#: Of servers that were asked, by host and port.
_servers: dict[str, _Patience] = {}
_lock = threading.Lock()
_send = requests.Session.send


def _send_in_time(self: requests.Session, request: requests.PreparedRequest, **how: Any) -> requests.Response:
    """Send a request; of a server that Stagemeter asks now, for no longer than its patience.

    MLflow's own timeout (``MLFLOW_HTTP_REQUEST_TIMEOUT``) is that of a single read: a server that drips never exceeds
    it, and one that fails is asked again for minutes (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``, 7, with a backoff factor of
    2, mlflow/environment_variables.py). Both stay as they are set, within this time.
    """
    patience = _servers.get(_server(request.url or ""))
    if patience is None or not patience.users:
        return _send(self, request, **how)
    left = patience.left()
    # Read in full there, since reading is where a server drips.
    try:
        answer = in_time(lambda: _send(self, request, **{**how, "stream": False}), left) if left else _over()
    except BaseException:
        patience.failed()
        raise
    if answer.status_code < 500:
        patience.answered()
    else:
        patience.failed()
    return answer


def _over() -> requests.Response:
    raise OutOfPatienceError(f"it answered nothing for {store_timeout():g} s ({VARIABLE})")


def _server(address: str) -> str:
    """Host and port; empty for an address that is none."""
    try:
        return urlsplit(address).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def is_out_of_patience(address: str) -> bool:
    """Whether a tracking server has answered nothing for as long as anybody waits."""
    patience = _servers.get(_server(address))
    return patience is not None and patience.is_over


@contextmanager
def patience_with(address: str) -> Iterator[None]:
    """Within the block, wait for answers of a tracking server as long as `store_timeout` says, and no longer.

    Parameters
    ----------
    address : str
        Of the store; one that is no server needs none.
    """
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
