"""Logs of requests: known by content, read in batches, and checked line by line.

A reader is a module with ``sniff``, whether a sample is of its format, and ``read``, the log of a file. A new format is
such a module and its place in `_READERS`.
"""

from __future__ import annotations

from pathlib import Path

from stagemeter.analysis.request_logs import (
    aiperf,
    bench_serving,
    csv_table,
    guidellm,
    json_lines,
    json_list,
    otlp,
    parquet,
)
from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.reading import RequestLog, Sample
from stagemeter.core.errors import StagemeterError

#: In the order in which they are tried. Whatever is text may be a table.
_READERS = (parquet, json_list, bench_serving, guidellm, aiperf, otlp, json_lines, csv_table)
#: How files begin that hold others, and the program that opens them.
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip, as an Excel sheet is",
}


def open_log(path: Path, bad: BadLines) -> RequestLog:
    """Open a log of requests. Its bad lines and failed requests are found while it is read."""
    sample = Sample.of(path)
    for start, packed in _PACKED.items():
        if sample.head.startswith(start):
            raise StagemeterError(f"{path}: is packed ({packed}). Unpack it, and give the log itself")
    if sample.head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise StagemeterError(f"{path}: is text in UTF-16. Save it as UTF-8")
    if not sample.start:
        raise StagemeterError(f"{path}: is empty. Give a log of requests")
    reader = next(reader for reader in _READERS if reader.sniff(sample))
    log: RequestLog = reader.read(path, bad)
    return log
