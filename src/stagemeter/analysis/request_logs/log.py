"""Logs of requests: CSV, JSON Lines or Parquet, known by content, read in batches and checked line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.request_logs.check import BadLines, Requests, checked
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import require_file, shown

if TYPE_CHECKING:
    import pandas

#: Names of each column. A dot is a step into an object, as in the usage that OpenAI's interface returns.
NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt_tokens": (
        *("prompt_tokens", "input_tokens", "prompt_len", "input_len", "num_prompt_tokens"),
        *("usage.prompt_tokens", "usage.input_tokens"),
    ),
    "cached_tokens": (
        *("cached_tokens", "num_cached_tokens", "cached_prompt_tokens", "prompt_tokens_details.cached_tokens"),
        *("input_tokens_details.cached_tokens", "usage.prompt_tokens_details.cached_tokens"),
        "usage.input_tokens_details.cached_tokens",
    ),
    "output_tokens": (
        *("output_tokens", "completion_tokens", "output_len", "new_tokens", "generated_tokens"),
        *("num_generation_tokens", "usage.completion_tokens", "usage.output_tokens"),
    ),
    "total_tokens": ("total_tokens", "usage.total_tokens"),
    "image_width": ("image_width",),
    "image_height": ("image_height",),
    "image_sizes": ("image_sizes", "images"),
}
_NEEDED = ("prompt_tokens", "output_tokens")
#: Columns of an engine that counts cached tokens beside those of the prompt.
_BESIDE = ("cache_read_input_tokens", "cache_creation_input_tokens")
_COLUMNS = {name: column for column, names in NAMES.items() for name in names}
#: Requests of a batch.
BATCH = 200_000
#: Bytes of the longest line of JSON.
_LONGEST_LINE = 16 * 2**20


@dataclass(frozen=True)
class RequestLog:
    """A log that is read once: the columns that it has of `NAMES`, the names of others, and its good requests."""

    columns: tuple[str, ...]
    unread: tuple[str, ...]
    batches: Iterator[Requests]

    @property
    def has_pages(self) -> bool:
        """Whether the log has columns of pictures."""
        return any(column.startswith("image_") for column in self.columns)


def open_log(path: Path, bad: BadLines) -> RequestLog:
    """Open a log of requests. Its bad lines are found while it is read."""
    require_file(path, "log of requests")
    with path.open("rb") as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise StagemeterError(f"{path}: is empty. Give a log of requests")
    if start.startswith(b"["):
        raise StagemeterError(f"{path}: is a list in JSON. Write each request on a line of its own")
    if start.startswith(b"{"):
        return _json_lines(path, bad)
    names, tables = (_parquet if start.startswith(b"PAR1") else _csv)(path)
    columns = _columns(path, names)
    unread = tuple(name for name in names if name not in columns)
    return RequestLog(tuple(columns.values()), unread, _checked((t.rename(columns=columns) for t in tables), bad))


def _is_known(name: str) -> bool:
    return name.strip().lower() in _COLUMNS


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the known columns among those of a table, by name."""
    found = {name: _COLUMNS[name.strip().lower()] for name in names if _is_known(name)}
    for column in NAMES:
        # pandas numbers the columns of one name.
        several = [name for name in names if re.sub(r"\.\d+$", "", name.strip().lower()) in NAMES[column]]
        if len(several) > 1:
            raise StagemeterError(f"{path}: {' and '.join(several)} mean the same. Keep one of them")
    _require_columns(path, names, set(found.values()))
    return found


def _require_columns(path: Path, names: Sequence[str], found: Set[str]) -> None:
    """Refuse a log without the columns that it needs."""
    beside = next((name for name in names if name.rpartition(".")[2] in _BESIDE), None)
    if beside is not None:
        raise StagemeterError(
            f"{path}: {beside} counts tokens beside those of the prompt. Write the sum of both as prompt_tokens, and "
            "the tokens that were read as cached_tokens"
        )
    for column in _NEEDED:
        if column not in found:
            known = ", ".join(NAMES[column][:5])
            raise StagemeterError(
                f"{path}: lacks a column {column}; it has {', '.join(map(shown, names[:20]))}. Name one of {known}"
            )
    pictures = sorted(name for name in found if name.startswith("image_"))
    if pictures not in ([], ["image_sizes"], ["image_height", "image_width"]):
        raise StagemeterError(
            f"{path}: has {' and '.join(pictures)}. Give image_width and image_height, or image_sizes alone"
        )


def _checked(tables: Iterable[pandas.DataFrame], bad: BadLines) -> Iterator[Requests]:
    """Yield the good requests of some tables, whose index are lines."""
    for table in tables:
        requests = checked(table, bad)
        if len(requests.line):
            yield requests


#: The names of a log's columns, and its tables, whose index are lines.
_Read = tuple[list[str], Iterator["pandas.DataFrame"]]


def _csv(path: Path) -> _Read:
    import pandas

    def error(reason: Exception) -> StagemeterError:
        text = str(reason).splitlines()[0].removeprefix("Error tokenizing data. C error: ")
        return StagemeterError(f"{path}: is not CSV, JSON Lines or Parquet ({text}). Repair it")

    kept = {"skipinitialspace": True, "skip_blank_lines": False, "encoding": "utf-8-sig"}
    try:
        head = pandas.read_csv(path, nrows=1, **kept)
    except (ValueError, OverflowError) as reason:
        raise error(reason) from None
    if not isinstance(head.index, pandas.RangeIndex):
        raise StagemeterError(f"{path}: line 2: has more columns than the header. Repair it")
    names = list(map(str, head.columns))
    wanted = [name for name in head.columns if _is_known(str(name))]

    def tables() -> Iterator[pandas.DataFrame]:
        try:
            # All columns are parsed: with `usecols`, pandas takes lines that have too many.
            with pandas.read_csv(path, chunksize=BATCH, **kept) as reader:
                for table in reader:
                    # The header is the first line, and a blank line is no request.
                    yield table.set_index(table.index + 2).dropna(how="all")[wanted]
        except (pandas.errors.ParserError, UnicodeDecodeError, OverflowError) as reason:
            raise error(reason) from None

    return names, tables()


def _json_lines(path: Path, bad: BadLines) -> RequestLog:
    import pandas

    head = islice(_records(path, BadLines(path, skip=True)), 1000)
    names = list(dict.fromkeys(name for _, record in head for name in record))
    # Names that mean the same can alternate or agree, so each line tells its own columns.
    columns = {name: _COLUMNS[name] for name in names if name in _COLUMNS}
    _require_columns(path, names, set(columns.values()))

    def tables() -> Iterator[pandas.DataFrame]:
        records = _records(path, bad)
        while batch := list(islice(records, BATCH)):
            found = [(line, known) for line, record in batch if (known := _known(line, record, bad)) is not None]
            index = [line for line, _ in found]
            yield pandas.DataFrame(
                {
                    name: pandas.Series([known.get(name) for _, known in found], index, object)
                    for name in NAMES
                    if name in _NEEDED or any(name in known for _, known in found)
                },
                index,
            )

    return RequestLog(
        tuple(columns.values()), tuple(name for name in names if name not in columns), _checked(tables(), bad)
    )


def _known(line: int, record: Mapping[str, Any], bad: BadLines) -> dict[str, Any] | None:
    """Return the known columns of a line, or None where two names of one column contradict each other."""
    known: dict[str, Any] = {}
    for name in record.keys() & _COLUMNS.keys():
        column, value = _COLUMNS[name], record[name]
        if value is not None and known.setdefault(column, value) != value:
            bad.add(line, f"says {column} twice: {shown(known[column])} and {shown(value)}")
            return None
    return known


def _records(path: Path, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file of JSON Lines with their lines, inner objects as names with dots."""
    with path.open("rb") as stream:
        line = 0
        while text := stream.readline(_LONGEST_LINE + 1):
            line += 1
            if len(text) > _LONGEST_LINE:
                raise StagemeterError(f"{path}: line {line:,}: is longer than {_LONGEST_LINE // 2**20} MiB. Shorten it")
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                bad.add(line, f"is no JSON ({error})")
                continue
            if isinstance(record, dict):
                yield line, _flat(record)
            else:
                bad.add(line, f"is {shown(record)}, not an object")


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict) and f"{prefix}{name}" in _INNER:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


#: Objects whose fields are columns.
_INNER = {name[:place] for name in _COLUMNS for place, letter in enumerate(name) if letter == "."}


def _parquet(path: Path) -> _Read:
    import pandas
    import pyarrow
    import pyarrow.parquet

    def error(reason: Exception) -> StagemeterError:
        return StagemeterError(f"{path}: is a damaged Parquet file ({str(reason).splitlines()[0]}). Write it again")

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as reason:
        raise error(reason) from None
    names = list(file.schema_arrow.names)

    def tables() -> Iterator[pandas.DataFrame]:
        start = 1
        try:
            for batch in file.iter_batches(BATCH, columns=[name for name in names if _is_known(name)]):
                if batch.num_rows:
                    columns = {
                        name: _series(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
                    }
                    yield pandas.DataFrame(columns).set_index(pandas.RangeIndex(start, start + batch.num_rows))
                start += batch.num_rows
        except (pyarrow.ArrowException, OSError) as reason:
            raise error(reason) from None

    def _series(column: Any) -> pandas.Series:
        nested = pyarrow.types.is_nested(column.type)
        return pandas.Series(column.to_pylist(), dtype=object) if nested else column.to_pandas()

    return names, tables()
