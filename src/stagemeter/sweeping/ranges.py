"""Lists of numbers as people write them: ``1,2,4``, ``256..4096:256``, ``1240x1754``."""

from __future__ import annotations

import re

from stagemeter.core.errors import StagemeterError
from stagemeter.core.units import number_in

# Python refuses to read numbers of thousands of digits.
_RANGE = re.compile(r"(?P<first>\d{1,18})\.\.(?P<last>\d{1,18})(?::(?P<step>\d{1,18}))?")
_SIZE = re.compile(r"(?P<width>\d{1,18})[xX](?P<height>\d{1,18})")
#: Most values of one range.
_MOST = 10_000_000


def numbers(text: str, option: str) -> list[int]:
    """Read whole numbers such as ``1,2,4`` and ranges such as ``256..4096:256``, each once, in the order written.

    A range includes both ends where its steps reach them. Errors name the `option`.
    """
    found: dict[int, None] = {}
    for part in words(text, option):
        match = _RANGE.fullmatch(part)
        if match is None:
            number = number_in(part)
            if number is None or number < 0 or number != int(number):
                raise StagemeterError(
                    f"{option} {part!r}: is no whole number. Write such as 1,2,4, or a range, such as 256..4096:256"
                )
            found[int(number)] = None
            continue
        first, last, step = int(match["first"]), int(match["last"]), int(match["step"] or 1)
        if step == 0 or last < first:
            raise StagemeterError(f"{option} {part!r}: holds no number. Write first..last:step, first not above last")
        if (last - first) // step >= _MOST:
            raise StagemeterError(f"{option} {part!r}: holds more than {_MOST:,} numbers. Give a larger step")
        found |= dict.fromkeys(range(first, last + 1, step))
    return list(found)


def sizes(text: str, option: str) -> list[tuple[int, int]]:
    """Read page sizes such as ``1240x1754,2480x3508``, each once."""
    found: dict[tuple[int, int], None] = {}
    for part in words(text, option):
        match = _SIZE.fullmatch(part)
        if match is None:
            raise StagemeterError(
                f"{option} {part!r}: is no page size. Write WIDTHxHEIGHT in pixels, such as 1240x1754"
            )
        found[int(match["width"]), int(match["height"])] = None
    return list(found)


def words(text: str, option: str) -> list[str]:
    """Read words between commas, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise StagemeterError(f"{option} {text!r}: has nothing between two commas. Write values such as 1,2,4")
    return list(dict.fromkeys(parts))
