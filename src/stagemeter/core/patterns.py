"""Guarded matching of regular expressions from outside, with a time limit."""

from __future__ import annotations

import re
import time
import warnings
from functools import lru_cache
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

#: Characters of an expression.
LONGEST = 4096
#: Processor seconds for all slow matches of one expression; a plain expression takes microseconds.
SECONDS = 0.2
#: Seconds from which a match counts as slow.
_SLOW = 0.001
#: Without these characters, an expression takes a time linear in its length.
_REPEATS = frozenset("*+?{(|\\")


def require_pattern(expression: str, where: str) -> None:
    """Raise an error for text that is not a regular expression, or longer than `LONGEST`; `where` names the setting."""
    _pattern(expression, where)


def matches_beginning(expression: str, name: str, where: str) -> bool:
    """Tell whether the beginning of a name matches, as `re.match` does; raise an error after `SECONDS`."""
    return _pattern(expression, where).takes("match", name, where)


def matches_whole(expression: str, name: str, where: str) -> bool:
    """Tell whether a whole name matches, as `re.fullmatch` does; raise an error after `SECONDS`."""
    return _pattern(expression, where).takes("fullmatch", name, where)


class _Pattern:
    """A compiled expression, and the time left for its slow matches."""

    def __init__(self, expression: str) -> None:
        import regex

        self.expression = expression
        # Python raises errors of an expression; its warnings of future changes do not matter here.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            self._plain = re.compile(expression)
        self._bounded: Any = regex.compile(expression) if _REPEATS & set(expression) else None
        self._left = SECONDS

    def takes(self, how: str, name: str, where: str) -> bool:
        if self._bounded is None:
            return getattr(self._plain, how)(name) is not None
        found, took = self._timed(how, name, max(self._left, _SLOW))
        if found is None:
            # Pauses of the process use up the time, too. A name that is fast at the second try is not slow.
            found, took = self._timed(how, name, _SLOW)
            self._left = SECONDS
        if found is None:
            self._left = 0.0
            raise StagemeterError(
                f"{where}: the expression {shown(self.expression)} takes too long to match. Write a simpler one"
            )
        if took > _SLOW:
            self._left -= took
        return found

    def _timed(self, how: str, name: str, seconds: float) -> tuple[bool | None, float]:
        """Return whether a name matches, None if that takes longer than so many seconds; and the seconds taken."""
        began = time.process_time()
        try:
            found = getattr(self._bounded, how)(name, timeout=seconds) is not None
        except TimeoutError:
            return None, seconds
        return found, time.process_time() - began


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> _Pattern:
    return _Pattern(expression)


def _pattern(expression: str, where: str) -> _Pattern:
    if len(expression) > LONGEST:
        raise StagemeterError(
            f"{where}: an expression has {len(expression):,} characters. Write one of at most {LONGEST:,}"
        )
    import regex

    try:
        return _compiled(expression)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise StagemeterError(
            f"{where}: {shown(expression)} is no regular expression: {error or type(error).__name__}. Correct it"
        ) from None
