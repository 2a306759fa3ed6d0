"""Faults put into valid files: in their structure, and in their bytes."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

#: What nobody expects in the place of something else.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.5, 1e308, 5e-324, math.nan, math.inf, -math.inf),
    *(10**9, 2**31, 2**63, 10**30, -(10**18), "", "0", "64", "x" * 500, "\x00", "\x1b[31m", "é☃\n", "auto", "none"),
    *([], {}, [[]], [0], [-1], [1] * 50, [None], ["full_attention"], {"a": 1}, {"": {}}, {"__float__": "Infinity"}),
)
#: Bytes that mean something to a reader.
_SPECIAL = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"',
    b"{",
    b"[",
    b"]",
    b"}",
    b":",
    b",",
    b"-",
    b"\n",
    b"\r",
)


def mutated_json(document: Any, chance: random.Random) -> bytes:
    """A JSON document with one to three faults."""
    if chance.random() < 0.1:
        return mutated_bytes(json.dumps(document).encode(), chance)
    changed = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        changed = _with_fault(changed, chance)
    text = json.dumps(changed, ensure_ascii=chance.random() < 0.8)
    if chance.random() < 0.03 and '": ' in text:
        # The first key again.
        text = text.replace("{", "{" + text.partition("{")[2].partition(",")[0] + ", ", 1)
    return text.encode(chance.choices(("utf-8", "utf-8-sig", "utf-16"), (50, 1, 1))[0], errors="surrogatepass")


def mutated_text(text: str, chance: random.Random) -> bytes:
    """Lines and their cells with one to three faults."""
    if chance.random() < 0.3:
        return mutated_bytes(text.encode(), chance)
    lines = text.splitlines()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        index = chance.randrange(len(lines) or 1)
        line = lines[index] if lines else ""
        kind = chance.randrange(5)
        if kind == 0:
            del lines[index : index + 1]
        elif kind == 1:
            lines.insert(index, line)
        elif kind == 2:
            other = chance.randrange(len(lines) or 1)
            lines[index : index + 1], lines[other : other + 1] = lines[other : other + 1], lines[index : index + 1]
        else:
            lines[index : index + 1] = [_with_other_cell(line, chance)]
    return "\n".join(lines).encode(errors="surrogatepass")


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Bytes with one to three faults."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, length = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 8, 64))
        kind = chance.randrange(6)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * chance.choice((1, 2, 100))
        elif kind == 3:
            changed[at:at] = chance.choice(_SPECIAL)
        elif kind == 4:
            changed[at : at + length] = chance.randbytes(length)
        elif at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _with_fault(document: Any, chance: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return chance.choice(ODD)
    holder, key = chance.choice(places)
    value = holder[key]
    kind = chance.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}_" if chance.random() < 0.5 else str(key)[:-1]] = holder.pop(key)
    elif kind == 2:
        other, name = chance.choice(places)
        holder[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
    elif kind == 3:
        for _ in range(chance.choice((1, 2, 100))):
            value = [value] if chance.random() < 0.5 else {"a": value}
        holder[key] = value
    elif kind < 8:
        holder[key] = _near(value, chance)
    else:
        holder[key] = copy.deepcopy(chance.choice(ODD))
    return document


def _near(value: Any, chance: random.Random) -> Any:
    """A value of the same kind, or close to it."""
    if isinstance(value, bool):
        return chance.choice((not value, int(value), str(value).lower(), None))
    if isinstance(value, (int, float)):
        changes: tuple[Callable[[Any], Any], ...] = (
            *(lambda n: 0, lambda n: -1, lambda n: -n, lambda n: n + 1, lambda n: n - 1, lambda n: 2 * n),
            *(lambda n: n * 1000, lambda n: n // 2, lambda n: n + 0.5, float, str, lambda n: [n], lambda n: 10**9),
            *(lambda n: n * 2**40, lambda n: 2**31, lambda n: 3 * n, lambda n: 1),
        )
        return chance.choice(changes)(value)
    if isinstance(value, list):
        of_lists: tuple[Callable[[Any], Any], ...] = (
            *(lambda v: [], lambda v: v * 2, lambda v: [v], lambda v: v[1:], lambda v: v[::-1], lambda v: v * 100),
            *(lambda v: v[:1], lambda v: [*v, None], lambda v: dict(enumerate(map(str, v)))),
        )
        return chance.choice(of_lists)(value)
    if isinstance(value, dict):
        return chance.choice(({}, [value], list(value), {**value, "a": 1}, None))
    if isinstance(value, str):
        return chance.choice(
            (value.upper(), value[:-1], f"{value}x", [value], "", value[::-1], value * 100, f" {value}")
        )
    return chance.choice(ODD)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: what holds it, and its key."""
    for key in _keys(document):
        yield document, key
        yield from _places(document[key])


def _keys(document: Any) -> list[Any]:
    if isinstance(document, dict):
        return list(document)
    return list(range(len(document))) if isinstance(document, list) else []


def _with_other_cell(line: str, chance: random.Random) -> str:
    """A line with one of its cells, words or numbers replaced."""
    separator = chance.choice((",", " ", ": ", "=", "|"))
    cells = line.split(separator)
    at = chance.randrange(len(cells))
    try:
        number = float(cells[at])
        cells[at] = str(_near(int(number) if number.is_integer() else number, chance))
    except (ValueError, OverflowError):
        cells[at] = str(chance.choice((*ODD, cells[at] * 3, cells[at][:-1], f'"{cells[at]}')))
    return separator.join(cells)
