"""Parts that readers of logs share: the sample by which they know a format, and the log that they return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.request_logs.check import BadLines, Requests, checked
from stagemeter.analysis.request_logs.columns import FAILED, names_of, require_columns, table_of
from stagemeter.core.files import require_file
from stagemeter.core.json_stream import first_keys

if TYPE_CHECKING:
    import pandas

#: Requests of a batch.
BATCH = 200_000
#: Records by which the columns of a log are told.
_HEAD = 1000
#: Names that tell whether a request failed.
_OF_FAILURES = (FAILED, "error", "response", "response.status_code", "response.body.error")
#: Bytes by which a format is known.
_SAMPLE = 2**20


@dataclass(frozen=True)
class Sample:
    """The beginning of a file, by which readers know its format."""

    path: Path
    head: bytes

    @classmethod
    def of(cls, path: Path) -> Sample:
        """Read the beginning of a file."""
        require_file(path, "log of requests")
        with path.open("rb") as stream:
            return cls(path, stream.read(_SAMPLE))

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
    def has_pages(self) -> bool:
        """Whether the log has columns of pictures."""
        return any(column.startswith("image_") and column != "image_ids" for column in self.columns)


def checked_tables(tables: Iterable[pandas.DataFrame], bad: BadLines) -> Iterator[Requests]:
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


def log_of_records(
    form: str,
    path: Path,
    records: Iterator[tuple[int, Mapping[str, Any]]],
    head: Sequence[Mapping[str, Any]],
    bad: BadLines,
) -> RequestLog:
    """Return the log of numbered records; `head` are some of them, which tell the columns."""
    names = names_of(head)
    columns = {name: column for name, column in names.items() if column is not None}
    if not head or any(FAILED not in record for record in head):
        require_columns(path, list(names), set(columns.values()))
    unread = tuple(name for name, column in names.items() if column is None and name not in _OF_FAILURES)

    def tables() -> Iterator[pandas.DataFrame]:
        while batch := list(islice(records, BATCH)):
            yield table_of([line for line, _ in batch], [record for _, record in batch], bad)

    return RequestLog(form, tuple(dict.fromkeys(columns.values())), unread, checked_tables(tables(), bad))


def unsized_pictures(requests: int) -> list[str]:
    """Return the note on requests of which a log tells the number of pictures alone."""
    if not requests:
        return []
    return [
        f"{requests:,} requests have pictures whose sizes the log does not say: they count as text, or with the page "
        "that is given for all"
    ]


def first_records(records: Iterator[tuple[int, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Return the records by which the columns are told."""
    return [record for _, record in islice(records, _HEAD)]
