"""A line on a terminal that says what a command is doing. It is on standard error, and nowhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

#: Seconds before the line is shown: a command that ends earlier shows none.
_PATIENCE = 0.4
#: Drawn seldom: on few cores, drawing takes time from a measurement.
_DRAWN_PER_SECOND = 4

_line: _Line | None = None
_listener: Callable[[str], None] | None = None


@contextmanager
def progress_line(text: str) -> Iterator[None]:
    """Show a line until the block or `end_line` ends it, if standard error is a terminal."""
    global _line
    if not sys.stderr.isatty():
        yield
        return
    _line = _Line(text)
    tell_steps_to(_line.tell)
    try:
        yield
    finally:
        end_line()


def doing(text: str) -> None:
    """Say what is done now."""
    if _listener is not None:
        _listener(text)


def is_followed() -> bool:
    """Tell whether anything shows what `doing` says."""
    return _listener is not None


def tell_steps_to(listener: Callable[[str], None] | None) -> None:
    """Make `doing` call a function."""
    global _listener
    _listener = listener


def end_line() -> None:
    """Remove the line, before a result is printed."""
    global _line
    if _line is not None:
        _line.end()
        _line = None
        tell_steps_to(None)


class _Line:
    """A spinner, a text and the time that has passed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._shown: Progress | None = None
        self._ended = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(_PATIENCE, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        # Imported by the timer's thread, beside what the command imports.
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with self._lock:
            if self._ended:
                return
            self._shown = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
                refresh_per_second=_DRAWN_PER_SECOND,
                # Standard output can be a file.
                redirect_stdout=False,
            )
            self._shown.add_task(self._text, total=None)
            self._shown.start()

    def tell(self, text: str) -> None:
        with self._lock:
            self._text = text
            if self._shown is not None:
                self._shown.update(self._shown.task_ids[0], description=text)

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._shown is not None:
                self._shown.stop()
