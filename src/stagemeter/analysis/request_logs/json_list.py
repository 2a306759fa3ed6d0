"""Logs of requests as one list in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.columns import Numbered
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, log_of_records
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.json_stream import stream_values


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with a list."""
    return sample.start.startswith(b"[")


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a list, whose requests are numbered from 1."""
    bad.place = "request"

    def objects() -> Iterator[Numbered]:
        for number, record in enumerate(values_of(path, "item"), 1):
            if isinstance(record, dict):
                yield number, record
            else:
                bad.add(number, f"is {shown(record)}, not an object")

    return log_of_records("list in JSON", path, objects(), bad)


def values_of(path: Path, prefix: str, several: bool = False) -> Iterator[Any]:
    """Yield the values of a list in a document, or in `several`; or raise StagemeterError where it is damaged."""
    import ijson

    with path.open("rb") as stream:
        if stream.read(3) != b"\xef\xbb\xbf":
            stream.seek(0)
        try:
            yield from stream_values(stream, prefix, str(path), several)
        except StagemeterError:
            raise
        except (ijson.JSONError, ValueError) as error:
            reason = " ".join(str(error).partition("(right here)")[0].split())[:80]
            raise StagemeterError(f"{path}: is no JSON, or cut off ({reason}). Write it again") from None
