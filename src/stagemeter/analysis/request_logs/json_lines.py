"""Logs of requests in JSON Lines: an object a line, such as OpenAI's usage, or the output of a file of batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, log_of_records
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

#: Bytes of the longest line.
_LONGEST_LINE = 16 * 2**20


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with an object."""
    return sample.start.startswith(b"{")


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a file."""
    return log_of_records("JSON Lines", path, numbered_objects(path, bad), bad)


def numbered_objects(path: Path, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file of JSON Lines with their lines."""
    from pydantic_core import from_json

    with path.open("rb") as stream:
        for line, text in enumerate(iter(partial(stream.readline, _LONGEST_LINE + 1), b""), 1):
            if len(text) > _LONGEST_LINE:
                raise StagemeterError(f"{path}: line {line:,}: is longer than {_LONGEST_LINE // 2**20} MiB. Shorten it")
            try:
                record = from_json(text)
            except ValueError:
                if line == 1:
                    text = text.removeprefix(b"\xef\xbb\xbf")
                if not text.strip():
                    continue
                try:
                    # Python's reader is slower, and takes what the other does not, such as half of a surrogate pair.
                    record = json.loads(text)
                except (ValueError, RecursionError) as error:
                    bad.add(line, f"is no JSON ({error})")
                    continue
            if isinstance(record, dict):
                yield line, record
            else:
                bad.add(line, f"is {shown(record)}, not an object")
