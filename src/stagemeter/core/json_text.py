"""Guarded reading of JSON: bounds on size, depth, digits and number of values, and no repeated keys."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import read_text, shown

#: Levels of nested lists and objects. Published configurations have up to 6, reports up to 9.
DEEPEST = 64
#: Digits of a whole number. The FLOPs of the largest request that can be described have about 40.
MOST_DIGITS = 100
#: Values in all. Tables of labels have 22,000.
MOST_VALUES = 2_000_000


def read_json(path: Path, what: str = "JSON file", *, infinite: bool = False) -> Any:
    """Read a JSON file within the bounds of this module.

    `infinite` allows ``Infinity`` and ``NaN``, which Python writes to configurations. `what` names the kind of file in
    errors.
    """
    return parse_json(read_text(path, what), str(path), infinite=infinite)


def read_json_object(path: Path, what: str = "JSON file", *, infinite: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object, see `read_json`."""
    content = read_json(path, what, infinite=infinite)
    if not isinstance(content, dict):
        raise StagemeterError(f"{path}: holds a {type(content).__name__}. Write an object of settings")
    return content


def parse_json(text: str, where: str, *, infinite: bool = False) -> Any:
    """Parse JSON within the bounds of this module, without repeated keys; `where` names its origin in errors."""

    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise StagemeterError(
                f"{where}: a whole number has {len(digits.lstrip('-')):,} digits. Write one of at most {MOST_DIGITS}"
            )
        return int(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise StagemeterError(f"{where}: {shown(twice)} is given more than once. Keep one of them")
        return content

    try:
        content = json.loads(
            text,
            parse_int=whole,
            parse_float=float if infinite else _finite(where),
            parse_constant=float if infinite else _finite(where),
            object_pairs_hook=unique,
        )
    except RecursionError:
        raise _too_deep(where) from None
    except json.JSONDecodeError as error:
        raise StagemeterError(f"{where}: cannot be read as JSON: {error}. Write it again") from None
    _require_bounded(content, where)
    return content


def _finite(where: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise StagemeterError(f"{where}: {shown(text)} is no finite number. Write one")
        return value

    return number


def _require_bounded(content: Any, where: str) -> None:
    """Raise an error for content nested too deep or too large, without recursion."""
    values, level, depth = 0, [content], 0
    while level:
        values += len(level)
        if values > MOST_VALUES:
            raise StagemeterError(f"{where}: holds more than {MOST_VALUES:,} values. Give a smaller file")
        inner = [value for value in level if isinstance(value, (list, dict))]
        depth += 1
        if inner and depth > DEEPEST:
            raise _too_deep(where)
        level = [part for value in inner for part in (value.values() if isinstance(value, dict) else value)]


def _too_deep(where: str) -> StagemeterError:
    return StagemeterError(f"{where}: is nested more than {DEEPEST} levels deep. Write it flatter")
