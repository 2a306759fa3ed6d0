"""Logs of requests in Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.columns import is_read
from stagemeter.analysis.request_logs.reading import BATCH, RequestLog, Sample, log_of_table
from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    import pandas


def sniff(sample: Sample) -> bool:
    """Return whether a file is of Parquet."""
    return sample.head.startswith(b"PAR1")


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a table."""
    return log_of_table("Parquet", path, *_read(path), bad)


def _read(path: Path) -> tuple[list[str], Iterator[pandas.DataFrame]]:
    """Return the names of a table's columns, and its parts, whose index are rows."""
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
            for batch in file.iter_batches(BATCH, columns=[name for name in names if is_read(name)]):
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
