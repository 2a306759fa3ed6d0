"""Work in a separate process, beside this one."""

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
from multiprocessing.queues import SimpleQueue
from typing import ParamSpec, TypeVar

from stagemeter.core.errors import StagemeterError
from stagemeter.core.garbage import collect_rarely
from stagemeter.core.progress import doing, is_followed, tell_steps_to

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: ``PR_SET_PDEATHSIG`` of prctl(2): the signal that a process gets when the thread that started it ends.
_PARENT_DEATH_SIGNAL = 1
_SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def in_background(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Iterator[Callable[[], Result]]:
    """Run a function of a module in a fresh interpreter; yield one that waits for its result, or raises its error.

    The process ends with the block, also after an error or an interrupt, and when this process is killed.
    """
    others = set(multiprocessing.active_children())
    # A fresh interpreter, not a fork: threads of this process would not survive a fork.
    context = multiprocessing.get_context("spawn")
    steps: SimpleQueue[str | None] | None = context.SimpleQueue() if is_followed() else None
    executor = ProcessPoolExecutor(
        max_workers=1,
        mp_context=context,
        initializer=_prepare,
        initargs=(logging.getLogger().getEffectiveLevel(), os.getpid(), steps),
    )
    if steps is not None:
        threading.Thread(target=_pass_on, args=(steps,), daemon=True).start()
    try:
        yield partial(_result, executor.submit(function, *args, **kwargs))
    finally:
        # The result is here or no longer needed; with torch, a process takes a second to exit by itself.
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        if steps is not None:
            steps.put(None)
        executor.shutdown(cancel_futures=True)


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        raise StagemeterError(
            "memory: the process that counts was ended from outside, perhaps for want of it. "
            "Use a machine with more, or --estimate (`estimate_report` in Python)"
        ) from None


def _pass_on(steps: SimpleQueue[str | None]) -> None:
    """Say what the other process says that it is doing."""
    for step in iter(steps.get, None):
        doing(step)


def _prepare(level: int, parent: int, steps: SimpleQueue[str | None] | None) -> None:
    end_with_parent(parent)
    tell_steps_to(None if steps is None else steps.put)
    collect_rarely()
    # Ctrl-C reaches all processes of a terminal; the parent ends this one, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


@cache
def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, even by SIGKILL, which the parent cannot announce.

    A worker that outlives its parent takes memory and cores from the next run. The parent may have ended already.
    """
    if sys.platform == "linux":
        # The kernel's signal also reaches a worker in a long call, where no thread of ours would run.
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    started_by = multiprocessing.parent_process()
    sentinel = None if started_by is None else started_by.sentinel
    threading.Thread(target=_follow, args=(parent, sentinel), daemon=True).start()


def _follow(parent: int, sentinel: int | None) -> None:
    if sentinel is not None:
        # The parent holds this pipe open: it becomes readable when the parent ends, or at once if it has.
        wait([sentinel])
    while sentinel is None and os.getppid() == parent:
        # joblib's workers have no such pipe.
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
