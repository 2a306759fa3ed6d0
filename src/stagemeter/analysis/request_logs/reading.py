"""Parts that readers of logs share: the sample by which they know a format, and the log that they return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from stagemeter.analysis.request_logs.check import SIZED, BadLines, Requests, checked
from stagemeter.analysis.request_logs.columns import (
    FAILED,
    Numbered,
    has_failed,
    is_read,
    known_columns,
    names_of,
    require_columns,
    table_of,
    with_failures,
)
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import require_file
from stagemeter.core.json_stream import first_keys

if TYPE_CHECKING:
    import pandas

#: Requests of a batch.
BATCH = 200_000
#: Records by which the columns of a log are told.
_HEAD = 1000
#: Bytes by which a format is known.
_SAMPLE = 2**20


@dataclass(frozen=True)
class Sample:
    """The beginning of a file, by which readers know its format."""

    head: bytes

    @classmethod
    def of(cls, path: Path) -> Sample:
        """Read the beginning of a file."""
        require_file(path, "log of requests")
        with path.open("rb") as stream:
            return cls(stream.read(_SAMPLE))

    @property
    def start(self) -> bytes:
        """The beginning, without byte order mark and space."""
        return self.head[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys of the first object, if the file begins with one."""
        return first_keys(self.head.removeprefix(b"\xef\xbb\xbf")) if self.start.startswith(b"{") else ()


@dataclass(frozen=True)
class RequestLog:
    """A log that is read once.

    Attributes
    ----------
    format : str
        Who writes such logs.
    columns, unread : tuple of str
        The columns that it has of `stagemeter.analysis.request_logs.columns.NAMES`, and the names of others.
    batches : iterator of Requests
        Its good requests.
    notes : list of str
        What the log says of itself, whole only after the last batch.
    """

    format: str
    columns: tuple[str, ...]
    unread: tuple[str, ...]
    batches: Iterator[Requests]
    notes: list[str] = field(default_factory=list)

    @property
    def sizes_pages(self) -> bool:
        """Tell whether the log gives the sizes of pictures."""
        return not SIZED.isdisjoint(self.columns)

    @property
    def counts_pages(self) -> bool:
        """Tell whether the log gives the number of pictures alone, without their sizes."""
        return "image_count" in self.columns and not self.sizes_pages


def _checked(tables: Iterable[pandas.DataFrame], bad: BadLines) -> Iterator[Requests]:
    """Yield the good requests of some tables, whose index are lines."""
    for table in tables:
        requests = checked(_served(table, bad), bad)
        if len(requests.line):
            yield requests


def _served(table: pandas.DataFrame, bad: BadLines) -> pandas.DataFrame:
    """Return the requests of a table that were answered, and count the others."""
    if FAILED not in table.columns:
        return table
    reasons = table.pop(FAILED)
    failed = reasons.notna()
    for line, reason in reasons[failed].items():
        bad.fail(int(line), str(reason))
    return table[~failed] if failed.any() else table


def log_of_table(
    form: str, path: Path, names: Sequence[str], tables: Iterable[pandas.DataFrame], bad: BadLines
) -> RequestLog:
    """Return the log of a table of some columns, in parts whose index are lines."""
    columns = known_columns(path, names)
    unread = tuple(name for name in names if not is_read(name))
    batches = _checked((with_failures(table.rename(columns=columns)) for table in tables), bad)
    return RequestLog(form, tuple(columns.values()), unread, batches)


def log_of_records(
    form: str,
    path: Path,
    records: Iterator[Numbered],
    bad: BadLines,
    *,
    notes: list[str] | None = None,
    remedy: str = "Give another log",
) -> RequestLog:
    """Return the log of numbered records, the first of which tell the columns; `remedy` helps where there are none."""
    head = list(islice(records, _HEAD))
    if not head:
        raise StagemeterError(f"{path}: holds no request{bad.left_out()}. {remedy}")
    names = names_of(record for _, record in head)
    columns = tuple(dict.fromkeys(column for column in names.values() if column is not None))
    if any(not has_failed(record) for _, record in head):
        require_columns(path, list(names), set(columns))
    unread = tuple(name for name, column in names.items() if column is None)
    left = chain(head, records)

    def tables() -> Iterator[pandas.DataFrame]:
        while (table := table_of(left, BATCH, bad)) is not None:
            yield table

    return RequestLog(form, columns, unread, _checked(tables(), bad), [] if notes is None else notes)
