"""Guarded reading of JSON too large for memory, value by value, with bounds on depth and digits."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Iterator
from typing import IO, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.json_text import DEEPEST

#: Digits of a whole number. Python's conversion takes a time quadratic in the digits.
MOST_DIGITS = 10_000
#: The fastest by measurement: larger blocks leave the processor's cache.
_BLOCK = 2**16
_ZEROS = b"0" * MOST_DIGITS
#: Kinds of characters outside of strings: brackets as round ones, digits as zeros, the rest as commas.
_KINDS = bytes(
    b"("[0] if byte in b"[{" else b")"[0] if byte in b"]}" else b"0"[0] if byte in b"0123456789" else b","[0]
    for byte in range(256)
)
#: Times that pairs of adjacent brackets are removed before the rest is checked one by one.
_ROUNDS = 6


def stream_values(stream: IO[bytes], prefix: str, where: str, several: bool = False) -> Iterator[Any]:
    """Yield the values of the list at an ijson path, without loading the document; `where` names it in errors.

    The stream can hold `several` documents. Nesting beyond `DEEPEST` and numbers beyond `MOST_DIGITS` raise
    StagemeterError. Invalid JSON raises ijson.JSONError or ValueError.
    """
    import ijson

    with _numbers_of_any_length():
        # Floats would be a third faster, but fail on whole numbers beyond 64 bits, such as hashes.
        yield from ijson.items(
            _Bounded(stream, where), prefix, use_float=False, buf_size=_BLOCK, multiple_values=several
        )


def first_keys(beginning: bytes) -> tuple[str, ...]:
    """Return the keys of the object that JSON begins with, as far as the bytes go and are valid."""
    import ijson

    keys, depth = [], 0
    with _numbers_of_any_length(), contextlib.suppress(StagemeterError, ijson.JSONError, ValueError):
        for event, value in ijson.basic_parse(_Bounded(io.BytesIO(beginning), ""), multiple_values=True):
            depth += event.startswith("start_")
            depth -= event.startswith("end_")
            if depth == 0:
                break
            if depth == 1 and event == "map_key":
                keys.append(value)
    return tuple(keys)


class _Bounded:
    """A stream that raises an error where its JSON exceeds the bounds of this module.

    ijson keeps the path of every level, in memory that grows with the square of the depth.
    """

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream = stream
        self._where = where
        self._in_string = False
        self._unread = b""
        self._digits = b""
        self._depth = 0

    def read(self, size: int = -1) -> bytes:
        """Read and check a block."""
        block = self._stream.read(size)
        outside = self._outside_of_strings(self._unread + block)
        numbers = self._digits + outside
        if _ZEROS in numbers:
            raise StagemeterError(f"{self._where}: a whole number has {MOST_DIGITS:,} digits or more. Write fewer")
        self._digits = numbers[-MOST_DIGITS:]
        self._follow(outside.translate(None, b"0,"))
        return block

    def _outside_of_strings(self, text: bytes) -> bytes:
        """Return the characters outside of strings by kind; keep a backslash at the end for the next block."""
        escapes = len(text) - len(text.rstrip(b"\\"))
        self._unread = b"\\" if escapes % 2 else b""
        plain = text.removesuffix(self._unread).replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = plain.split(b'"')
        outside = parts[self._in_string :: 2]
        self._in_string ^= len(parts) % 2 == 0
        return b",".join(outside).translate(_KINDS)

    def _follow(self, brackets: bytes) -> None:
        change = brackets.count(b"(") - brackets.count(b")")
        rest = brackets
        for _ in range(_ROUNDS):
            rest = rest.replace(b"()", b"")
        if self._depth + _ROUNDS + rest.count(b"(") > DEEPEST:
            steps = (1 if bracket == b"("[0] else -1 for bracket in brackets)
            if max(itertools.accumulate(steps, initial=self._depth)) > DEEPEST:
                raise StagemeterError(f"{self._where}: is nested more than {DEEPEST} levels deep. Give another file")
        self._depth += change


@contextlib.contextmanager
def _numbers_of_any_length() -> Iterator[None]:
    """Let Python convert whole numbers of more than 4,300 digits; at the limit, ijson 3.6 crashes."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)
