"""Names of the columns that a log of requests has, and tables of records by these columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.request_logs.check import SIZED, BadLines
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

if TYPE_CHECKING:
    import pandas

#: Names of each column. A dot is a step into an object.
NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt_tokens": ("prompt_tokens", "input_tokens", "prompt_len", "input_len", "num_prompt_tokens"),
    "cached_tokens": (
        *("cached_tokens", "num_cached_tokens", "cached_prompt_tokens", "prompt_cache_hit_tokens"),
        *("prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens"),
    ),
    "output_tokens": (
        *("output_tokens", "completion_tokens", "output_len", "new_tokens", "generated_tokens"),
        "num_generation_tokens",
    ),
    "total_tokens": ("total_tokens",),
    "image_width": ("image_width",),
    "image_height": ("image_height",),
    "image_sizes": ("image_sizes", "images"),
    "image_count": ("image_count", "num_images"),
    "image_ids": ("image_ids", "image_id", "image_hashes", "image_hash"),
}
#: Objects that hold such names, too: the usage of OpenAI's interface (vllm/entrypoints/openai/engine/protocol.py,
#: ``UsageInfo``), in its responses and files of batches, and SGLang's (``meta_info`` of ``/generate``).
WITHIN = ("usage", "response.usage", "body.usage", "response.body.usage", "meta_info")
#: The reason why a request failed, a column of readers. Such requests are counted and not costed.
FAILED = "(failed)"
#: Fields that tell whether a request failed, see `failure_of`, and those within them.
_OF_FAILURES = frozenset(("error", "response", "status_code"))
_WITHIN_FAILURES = ("response.status_code", "response.body.error")
#: The status of a request that was answered.
_ANSWERED = 200
#: Those of a table, whose rows have no objects.
_FAILURES_OF_ROWS = ("error", "status_code")
#: A record and its line.
Numbered = tuple[int, Mapping[str, Any]]
#: Records whose values are gathered at once: they fit the processor's cache.
_PIECE = 2_000
NEEDED = ("prompt_tokens", "output_tokens")
#: Columns of an engine that counts cached tokens beside those of the prompt.
_BESIDE = ("cache_read_input_tokens", "cache_creation_input_tokens")
_COLUMNS = {
    f"{within}{name}": column
    for within in ("", *(f"{one}." for one in WITHIN))
    for column, names in NAMES.items()
    for name in names
}
#: Objects whose fields are columns.
_INNER = {name[:place] for name in _COLUMNS for place, letter in enumerate(name) if letter == "."}
#: Whole numbers up to this are exact as floats.
_EXACT = 2**53


def is_known(name: str) -> bool:
    """Return whether a column of a table is one of `NAMES`."""
    return name.strip().lower() in _COLUMNS


def is_read(name: str) -> bool:
    """Return whether a column of a table is known, or tells which requests failed."""
    return is_known(name) or name.strip().lower() in _FAILURES_OF_ROWS


def known_columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the known columns among those of a table, by name."""
    found = {name: _COLUMNS[name.strip().lower()] for name in names if is_known(name)}
    for column in NAMES:
        # pandas numbers the columns of one name.
        plain = {name: re.sub(r"\.\d+$", "", name.strip().lower()) for name in names}
        several = [name for name in names if _COLUMNS.get(plain[name]) == column]
        if len(several) > 1:
            raise StagemeterError(f"{path}: {' and '.join(several)} mean the same. Keep one of them")
    require_columns(path, names, set(found.values()))
    return found


def require_columns(path: Path, names: Sequence[str], found: Set[str]) -> None:
    """Refuse a log without the columns that it needs."""
    beside = next((name for name in names if name.rpartition(".")[2] in _BESIDE), None)
    if beside is not None:
        raise StagemeterError(
            f"{path}: {beside} counts tokens beside those of the prompt. Write the sum of both as prompt_tokens, and "
            "the tokens that were read as cached_tokens"
        )
    for column in NEEDED:
        if column not in found:
            known = ", ".join(NAMES[column][:5])
            raise StagemeterError(
                f"{path}: lacks a column {column}; it has {', '.join(map(shown, names[:20])) or 'none'}. Name one of "
                f"{known}"
            )
    pictures = sorted(SIZED & found)
    if pictures not in ([], ["image_sizes"], ["image_height", "image_width"]):
        raise StagemeterError(
            f"{path}: has {' and '.join(pictures)}. Give image_width and image_height, or image_sizes alone"
        )


def failure_of(record: Mapping[str, Any]) -> str | None:
    """Return why a request failed: an ``error``, or a ``status_code`` other than 200, its own or of its ``response``.

    Source: vllm/entrypoints/openai/run_batch.py, vLLM 0.32, ``BatchRequestOutput``.
    """
    response = record.get("response")
    answer = response if isinstance(response, dict) else {}
    status, body = answer.get("status_code", record.get("status_code")), answer.get("body")
    error = record.get("error") or (body.get("error") if isinstance(body, dict) else None)
    if error:
        message = error.get("message") or error if isinstance(error, dict) else error
        return message if isinstance(message, str) else shown(message)
    if isinstance(status, float) and status.is_integer():
        # A column of a table with gaps has floats.
        status = int(status)
    return None if status in (None, _ANSWERED, str(_ANSWERED)) else f"status {shown(status)}"


def with_failures(table: pandas.DataFrame) -> pandas.DataFrame:
    """Replace the columns of a table that tell of failures by `FAILED`, as `failure_of` has it."""
    names = {name: known for name in table.columns if (known := str(name).strip().lower()) in _FAILURES_OF_ROWS}
    if not names:
        return table
    told = table[list(names)].rename(columns=names).astype(object)
    reasons: list[str | None] = [None] * len(told)
    # Most rows are those of requests that were answered.
    for place in (told.notna() & told.ne(_ANSWERED)).any(axis=1).to_numpy().nonzero()[0]:
        row = told.iloc[place]
        reasons[place] = failure_of(row[row.notna()].to_dict())
    return table.drop(columns=list(names)).assign(**{FAILED: reasons})


def has_failed(record: Mapping[str, Any]) -> bool:
    """Return whether the request of a record failed."""
    return FAILED in record or failure_of(record) is not None


def names_of(records: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """Return the names in some records, those of inner objects with dots, and the columns that they are.

    Names that only tell of failures are left out.
    """
    names = dict.fromkeys(name for record in records for name in _names(record))
    return {name: _COLUMNS.get(name) for name in names if name not in (FAILED, *_OF_FAILURES, *_WITHIN_FAILURES)}


def _names(record: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in record.items():
        if isinstance(value, dict) and f"{prefix}{name}" in _INNER:
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def table_of(records: Iterator[Numbered], most: int, bad: BadLines) -> pandas.DataFrame | None:
    """Return the known columns of the next records, `most` of them at most; None where there is none.

    Names that mean the same can alternate or agree, so each record tells its own columns. Records in which they
    contradict each other are left out.
    """
    import numpy as np
    import pandas

    lines: list[int] = []
    found: dict[tuple[str, ...], list[Any]] = {}
    while len(lines) < most and (piece := list(islice(records, min(_PIECE, most - len(lines))))):
        for path, values in _values([record for _, record in piece]):
            found.setdefault(path, [None] * len(lines)).extend(values)
        lines += [line for line, _ in piece]
        for values in found.values():
            values += [None] * (len(lines) - len(values))
    if not lines:
        return None
    columns: dict[str, list[Any]] = {}
    wrong: dict[int, str] = {}
    # Sorted, so that two runs tell of the same value.
    for path, values in sorted(found.items()):
        column = _COLUMNS.get(".".join(path), path[0])
        if (before := columns.get(column)) is not None:
            for row, (one, other) in enumerate(zip(before, values, strict=True)):
                if one is not None and other is not None and one != other:
                    wrong.setdefault(row, f"says {column} twice: {shown(one)} and {shown(other)}")
            values = [other if one is None else one for one, other in zip(before, values, strict=True)]
        columns[column] = values
    for row in sorted(wrong):
        bad.add(lines[row], wrong[row])
    for column in NEEDED:
        columns.setdefault(column, [None] * len(lines))
    table = pandas.DataFrame({name: _array(values) for name, values in columns.items()}, pandas.Index(lines, np.int64))
    return table.drop(index=[lines[row] for row in wrong]) if wrong else table


def _values(records: Sequence[Mapping[str, Any]], within: tuple[str, ...] = ()) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the paths of known columns in some records and in their inner objects, with a value for each record."""
    present = set().union(*records)
    if not within and not _OF_FAILURES.isdisjoint(present):
        yield (FAILED,), [failure_of(record) for record in records]
    for name in present:
        path = (*within, name)
        full = ".".join(path)
        if full in _INNER:
            inner = [value if isinstance(value := record.get(name), dict) else {} for record in records]
            yield from _values(inner, path)
        elif full in _COLUMNS or full == FAILED:
            yield path, [record.get(name) for record in records]


def _array(values: list[Any]) -> Any:
    """Return values as an array of numbers if they are whole, some of them missing, and of objects otherwise."""
    import numpy as np

    kinds = set(map(type, values))
    with suppress(OverflowError):
        if kinds == {int}:
            return np.array(values, np.int64)
        if kinds == {int, type(None)}:
            numbers = np.array(values, np.float64)
            if np.nanmax(np.abs(numbers)) < _EXACT:
                return numbers
    # ijson reads numbers with a point as decimals.
    made = [float(value) if isinstance(value, Decimal) else value for value in values]
    found = np.empty(len(values), object)
    found[:] = made
    return found
