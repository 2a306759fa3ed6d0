"""Limits on how much a metric may grow or shrink, as a gate for continuous integration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stagemeter.comparing.subject import Subject, require_one_basis
from stagemeter.core.errors import StagemeterError
from stagemeter.core.metrics import COMPARED

_LIMIT = re.compile(r"(?P<left>[\w.-]+)/(?P<right>[\w.-]+)=(?P<amount>\d+(?:\.\d+)?)(?P<percent>%?)")

#: Options of limits, by whether they limit an increase.
_OPTIONS = {True: "--max-increase", False: "--max-decrease"}


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that a metric, such as ``flops/total``, may grow over the baseline; without `increase`, shrink.

    A relative amount is a share of the baseline's value, such as 1/100. Other amounts are in the metric's unit. All are
    exact fractions, so that a limit holds to the integer.
    """

    metric: str
    amount: Fraction
    relative: bool
    increase: bool = True


def parse_limit(text: str, increase: bool = True) -> Limit:
    """Read a limit such as ``total/flops=1%``, or raise StagemeterError.

    The form is ``stage/quantity=amount``, or ``quantity/stage=amount``, as MLflow names it. An amount without the
    percent sign is in the value's own unit.
    """
    option = _OPTIONS[increase]
    match = _LIMIT.fullmatch(text.strip())
    if match is None:
        raise StagemeterError(f"{option} {text!r}: is no limit. Write stage/quantity=percent, such as total/flops=1%")
    left, right = match["left"], match["right"]
    if left not in COMPARED and right not in COMPARED:
        raise StagemeterError(f"{option} {text!r}: names no quantity. Known are {', '.join(COMPARED)}")
    metric = f"{left}/{right}" if left in COMPARED else f"{right}/{left}"
    relative = bool(match["percent"])
    return Limit(metric, Fraction(match["amount"]) / (100 if relative else 1), relative, increase)


def breaches(subjects: Sequence[Subject], baseline: int, limits: Iterable[Limit]) -> list[str]:
    """Return a line for each limit that is exceeded.

    A subject without a value of that name, or with one of another basis, raises StagemeterError: a limit that cannot be
    checked must not pass.
    """
    base = subjects[baseline]
    lines = []
    for limit in limits:
        named = f"{_OPTIONS[limit.increase]} {limit.metric}"
        require_one_basis(named, limit.metric.partition("/")[0], subjects)
        before = _value(base, limit)
        for subject in subjects:
            if subject is base:
                continue
            after = _value(subject, limit)
            change = after - before if limit.increase else before - after
            allowed = limit.amount * abs(Fraction(before)) if limit.relative else limit.amount
            if change > allowed:
                lines.append(_breach(subject, base, limit, before, after, change))
    return lines


def _value(subject: Subject, limit: Limit) -> float:
    if limit.metric in subject.values:
        return subject.values[limit.metric]
    quantity = limit.metric.partition("/")[0]
    known = [name for name in subject.values if name.startswith(f"{quantity}/")]
    raise StagemeterError(
        f"{_OPTIONS[limit.increase]} {limit.metric}: {subject.name} has no such value. "
        f"It has {', '.join(known) or f'no {quantity} at all'}"
    )


def _breach(subject: Subject, base: Subject, limit: Limit, before: float, after: float, change: float) -> str:
    direction = "more" if limit.increase else "less"
    share = f" ({100 * change / abs(before):.3g} %)" if before else ""
    allowed = f"{float(100 * limit.amount):g} %" if limit.relative else _number(limit.amount)
    return (
        f"{limit.metric}: {_number(after)} of {subject.name} is {_number(change)}{share} {direction} than "
        f"{_number(before)} of {base.name}; allowed is {allowed}"
    )


def _number(value: float | Fraction) -> str:
    """Write a whole number with all its digits, and another number with six."""
    return f"{int(value):,}" if value == int(value) else f"{float(value):,.6g}"
