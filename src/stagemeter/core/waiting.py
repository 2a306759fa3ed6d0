"""Waiting for what cannot be told to give up, such as a server that answers a byte a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_time(function: Callable[[], Result], seconds: float, late: Exception) -> Result:
    """Call a function, and go on without it when the time is over.

    Parameters
    ----------
    function : callable
        The function. It is left alone in a thread that ends with the process if it takes longer.
    seconds : float
        Time that it may take.
    late : Exception
        What is raised then.
    """
    outcome: list[Callable[[], Result]] = []

    def work() -> None:
        try:
            result = function()
        except BaseException as error:
            failure = error
            outcome.append(lambda: _raised(failure))
        else:
            outcome.append(lambda: result)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise late
    return outcome[0]()


def _raised(error: BaseException) -> Any:
    raise error
