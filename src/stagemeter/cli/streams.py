"""Standard output and error that survive a closed pipe, a full disk and a terminal of ASCII alone."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Replacements for characters that an ASCII terminal lacks; others are written as escapes.
_IN_ASCII = {"µ": "u", "×": "x", "–": "-", "…": "...", "→": "->", "•": "*", "━": "-", "\u00a0": " "}
_HANDLER = "stagemeter.ascii"


def prepare_streams(redact: Callable[[str], str]) -> None:
    """Replace standard output and error by streams that survive errors, unless they were replaced before.

    `redact` removes secrets from all of standard error, third-party lines included. Standard output holds results,
    which stay exact.
    """
    codecs.register_error(_HANDLER, _in_ascii)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            # The shell closed it. The next open file would get its descriptor.
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.devnull, "w"))))
        elif isinstance(stream, io.TextIOWrapper):
            if stream is getattr(sys, f"__{name}__"):
                stream = _forgiving(stream, name, redact if name == "stderr" else None)
                setattr(sys, name, stream)
            stream.reconfigure(encoding="ascii" if _asks_for_ascii(os.environ) else None, errors=_HANDLER)


def _asks_for_ascii(environment: Mapping[str, str]) -> bool:
    """Tell whether the C locale makes Python use UTF-8 (PEP 540), and no setting of Python overrides that."""
    told = "PYTHONIOENCODING" in environment or "PYTHONUTF8" in environment or "utf8" in sys._xoptions
    return environment.get("LC_ALL") in ("C", "POSIX") and not told


def _forgiving(stream: io.TextIOWrapper, name: str, redact: Callable[[str], str] | None) -> io.TextIOWrapper:
    stream.flush()
    forgiving = _Redacted(
        io.BufferedWriter(_Outlet(stream.fileno(), name)),
        encoding=stream.encoding,
        line_buffering=stream.line_buffering or name == "stderr",
        write_through=stream.write_through,
    )
    forgiving.redact = redact
    return forgiving


class _Redacted(io.TextIOWrapper):
    redact: Callable[[str], str] | None = None

    def write(self, text: str, /) -> int:
        # click writes bytes to test whether the stream takes them.
        return super().write(self.redact(text) if self.redact and isinstance(text, str) else text)


class _Outlet(io.RawIOBase):
    """A descriptor whose reader may leave: later output is dropped, and the work goes on.

    The exit code stays that of the work, on which the caller of a gate relies.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name, self._ended = descriptor, name, False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        content = memoryview(data)
        if self._ended:
            return len(content)
        try:
            return os.write(self._descriptor, content)
        except OSError as error:
            # Drop the rest: the interpreter flushes again at its end and would report the error twice.
            self._ended = True
            # An error of standard error cannot be reported.
            if isinstance(error, BrokenPipeError) or self._name == "stderr":
                return len(content)
            raise StagemeterError(
                f"{self._name}: cannot be written: {error.strerror}. Free space, or redirect the output elsewhere"
            ) from error


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    known = (_IN_ASCII.get(one) or one.encode("ascii", "backslashreplace").decode() for one in characters)
    return "".join(known), error.end
