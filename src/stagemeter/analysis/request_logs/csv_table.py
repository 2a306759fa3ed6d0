"""Logs of requests in CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.columns import is_read
from stagemeter.analysis.request_logs.reading import BATCH, RequestLog, Sample, log_of_table
from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    import pandas


def sniff(sample: Sample) -> bool:
    """Return True: what is no other format may be a table."""
    return bool(sample.start)


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a table."""
    return log_of_table("CSV", path, *_read(path), bad)


def _read(path: Path) -> tuple[list[str], Iterator[pandas.DataFrame]]:
    """Return the names of a table's columns, and its parts, whose index are lines."""
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
    wanted = [name for name in head.columns if is_read(str(name))]

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
