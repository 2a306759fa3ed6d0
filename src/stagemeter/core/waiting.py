"""A time limit for calls that cannot be interrupted, such as one to a server that answers a byte a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


def in_time(function: Callable[[], Result], seconds: float, late: Exception) -> Result:
    """Call a function, or raise `late` after some seconds.

    A function that takes longer stays behind in a thread, which ends with the process.
    """
    outcome = Future[Result]()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    # An executor would wait for the thread when the process ends.
    threading.Thread(target=work, daemon=True).start()
    if not wait([outcome], seconds).done:
        raise late
    return outcome.result()
