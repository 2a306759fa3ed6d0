"""Work in a process of its own, while this one does something else."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from stagemeter.errors import StagemeterError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def in_background(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Iterator[Callable[[], Result]]:
    """Start a function in a new process.

    Parameters
    ----------
    function : callable
        A function of a module; it and its arguments are sent to a fresh interpreter.
    *args, **kwargs
        Its arguments.

    Yields
    ------
    callable
        Waits for the function and returns what it returned, or raises what it raised.

    Notes
    -----
    The process is ended when the block is left, whether by its end, an error or an interrupt.
    """
    others = set(multiprocessing.active_children())
    # A fresh interpreter rather than a fork: threads that this process has by then would not survive one.
    executor = ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(logging.getLogger().getEffectiveLevel(),),
    )
    try:
        yield partial(_result, executor.submit(function, *args, **kwargs))
    finally:
        # Either its result is here or nobody wants it any more; torch alone takes a second to leave by itself.
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        executor.shutdown(cancel_futures=True)


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        raise StagemeterError(
            "the process that does the counting was ended from outside, perhaps for want of memory"
        ) from None


def _prepare(level: int) -> None:
    # Ctrl-C reaches all processes of a terminal; this one is ended by the one that started it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
