"""Checks of times that all readers share. Numbers stay exact decimals until they are milliseconds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.profiling.profile import LONGEST_MS
from stagemeter.profiling.ranges import TimeRange

_NS_PER_MS = 10**6
#: Largest exponent: decimals end at 10^999999, which a sum must not reach.
_LARGEST_EXPONENT = 1000
_LONGEST = Decimal(LONGEST_MS)
#: A picosecond: no stage takes less, and a rate per second stays finite.
_SHORTEST = Decimal("1e-9")
_LONGEST_NS = int(LONGEST_MS) * _NS_PER_MS
#: Largest distance from a clock's epoch, a million years.
_FARTHEST_NS = 10_000 * _LONGEST_NS
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


def exact(value: object) -> Decimal:
    """Convert a number from a file without rounding it; raise ValueError unless it is finite and not too large."""
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        number = Decimal(value)  # type: ignore[arg-type]
        if number.is_finite() and number.adjusted() < _LARGEST_EXPONENT:
            return number
    raise ValueError(f"{shown(value)} is no number")


def milliseconds(where: str, value: object) -> float:
    """Return a time in milliseconds; refuse one that is below a picosecond or above a century."""
    try:
        # Text in JSON is no number, even if it looks like one.
        number = exact(None if isinstance(value, str) else value)
    except ValueError:
        what = "time" if _NOT_FINITE.fullmatch(str(value).strip()) else "number"
        raise StagemeterError(f"{where}: {shown(value)} is no {what}. Give milliseconds") from None
    if number > _LONGEST:
        raise StagemeterError(f"{where}: {number:.6g} ms is more than a century. Give milliseconds")
    if number < _SHORTEST:
        raise StagemeterError(f"{where}: {number:.6g} ms is no time of a stage. Give one above zero, or leave it out")
    return float(number)


def nanoseconds(value: Decimal, per_unit: int) -> int:
    """Convert a time in units of `per_unit` nanoseconds; raise ValueError if it is beyond the range of any clock."""
    if abs(value) > _FARTHEST_NS:
        raise ValueError(f"{shown(value)} is out of range")
    return round(value * per_unit)


def time_range(where: str, stage: str, start: object, end: object, lane: str) -> TimeRange:
    """Make a range of nanoseconds from values of a file; refuse one that is negative or exceeds a century."""
    try:
        first, last = nanoseconds(exact(start), 1), nanoseconds(exact(end), 1)
    except ValueError:
        first, last = 0, -1
    if not 0 <= last - first <= _LONGEST_NS:
        raise StagemeterError(
            f"{where}: a range from {shown(start)} to {shown(end)} is no time. Profile or export it again"
        )
    return TimeRange(stage, first, last, lane)


def require_single(where: str, columns: Sequence[str]) -> None:
    """Refuse a table with a repeated column."""
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise StagemeterError(f"{where}: the header has {twice[0]!r} more than once. Keep one of the columns")
