"""Standard output and error of a command: a reader who leaves, a full disk, a terminal that knows ASCII alone."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable, Mapping
from typing import TextIO

from stagemeter.core.errors import StagemeterError

#: What characters of ours become where the terminal does not know them; others are written as their escapes.
_IN_ASCII = {"µ": "u", "×": "x", "–": "-", "…": "...", "→": "->", "•": "*", "━": "-", "\u00a0": " "}
_HANDLER = "stagemeter.ascii"


def prepare_streams(redact: Callable[[str], str]) -> None:
    """Put streams that forgive in the place of standard output and error, unless somebody else did so before.

    Parameters
    ----------
    redact : callable
        Takes out of a text what nobody is to read: of all that goes to standard error, whoever wrote it. What goes to
        standard output is ours alone, and exact.
    """
    codecs.register_error(_HANDLER, _in_ascii)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            # The shell closed it. A file that is opened later would get its number.
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.devnull, "w"))))
        elif isinstance(stream, io.TextIOWrapper):
            if stream is getattr(sys, f"__{name}__"):
                stream = _forgiving(stream, name, redact if name == "stderr" else None)
                setattr(sys, name, stream)
            stream.reconfigure(encoding="ascii" if _asks_for_ascii(os.environ) else None, errors=_HANDLER)


def _asks_for_ascii(environment: Mapping[str, str]) -> bool:
    """Whether the locale is set to C, in whose place Python takes UTF-8 (PEP 540), and nobody told Python otherwise."""
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
    """Text from which something is taken out on its way."""

    redact: Callable[[str], str] | None = None

    def write(self, text: str, /) -> int:
        # click offers bytes to see whether they are refused.
        return super().write(self.redact(text) if self.redact and isinstance(text, str) else text)


class _Outlet(io.RawIOBase):
    """A descriptor whose reader may leave: what is written from then on goes nowhere, and the work goes on.

    The exit code stays the one that the work earned, which a gate's caller may rely on.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name, self._ended = descriptor, name, False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        content = memoryview(data)  # type: ignore[arg-type]
        if self._ended:
            return len(content)
        try:
            return os.write(self._descriptor, content)
        except OSError as error:
            # Once is enough: the interpreter tries again when it ends, and would say so.
            self._ended = True
            # Of standard error nothing can be said.
            if isinstance(error, BrokenPipeError) or self._name == "stderr":
                return len(content)
            raise StagemeterError(
                f"{self._name}: cannot be written: {error.strerror}. Free space there, or write to somewhere else"
            ) from error


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    known = (_IN_ASCII.get(one) or one.encode("ascii", "backslashreplace").decode() for one in characters)
    return "".join(known), error.end
