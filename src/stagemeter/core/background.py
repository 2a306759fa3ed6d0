"""Work in a process of its own, while this one does something else."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

from stagemeter.core.errors import StagemeterError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: ``PR_SET_PDEATHSIG`` of prctl(2): which signal a process gets when the thread that started it ends.
_PARENT_DEATH_SIGNAL = 1
_SECONDS_BETWEEN_LOOKS = 0.5


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
    The process is ended when the block is left, whether by its end, an error or an interrupt, and when this process
    is killed.
    """
    others = set(multiprocessing.active_children())
    # A fresh interpreter rather than a fork: threads that this process has by then would not survive one.
    executor = ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(logging.getLogger().getEffectiveLevel(), os.getpid()),
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


def _prepare(level: int, parent: int) -> None:
    end_with_parent(parent)
    # Ctrl-C reaches all processes of a terminal; this one is ended by the one that started it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


@cache
def end_with_parent(parent: int) -> None:
    """Have this process end when the one that started it does, even by SIGKILL, which lets it tell nobody.

    A worker that outlives its parent takes memory and cores from the next run, and has nobody to work for.

    Parameters
    ----------
    parent : int
        Id of the process that started this one. It may be gone before this is called.
    """
    if sys.platform == "linux":
        # The kernel's way reaches a worker that is inside of a long call, too, where no thread of ours would run.
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    started_by = multiprocessing.parent_process()
    sentinel = None if started_by is None else started_by.sentinel
    threading.Thread(target=_follow, args=(parent, sentinel), daemon=True).start()


def _follow(parent: int, sentinel: int | None) -> None:
    if sentinel is not None:
        # A pipe that the parent holds open: it can be read once the parent is gone, also if it was gone before.
        wait([sentinel])
    while sentinel is None and os.getppid() == parent:
        # Workers of joblib have no such pipe.
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
