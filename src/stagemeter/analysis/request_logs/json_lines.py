"""Logs of requests in JSON Lines: an object a line, such as OpenAI's usage, or the output of a file of batches.

A failed request has an ``error``, or a ``response`` with a ``status_code`` other than 200, as in the output of batches
(vllm/entrypoints/openai/run_batch.py, ``BatchRequestOutput``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.columns import FAILED
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, first_records, log_of_records
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

#: Bytes of the longest line.
_LONGEST_LINE = 16 * 2**20


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with an object."""
    return sample.start.startswith(b"{")


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a file."""

    def answers(bad: BadLines) -> Iterator[tuple[int, Mapping[str, Any]]]:
        return ((line, with_failure(record)) for line, record in numbered_objects(path, bad))

    head = first_records(answers(BadLines(path, skip=True)))
    return log_of_records("JSON Lines", path, answers(bad), head, bad)


def with_failure(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record, and why its request failed if it did."""
    response = record.get("response")
    answer = response if isinstance(response, dict) else {}
    status, body = answer.get("status_code", record.get("status_code")), answer.get("body")
    error = record.get("error") or (body.get("error") if isinstance(body, dict) else None)
    if error or status not in (None, 200):
        return {**record, FAILED: _reason(error) if error else f"status {shown(status)}"}
    return record


def _reason(error: Any) -> str:
    message = error.get("message") or error if isinstance(error, dict) else error
    return message if isinstance(message, str) else shown(message)


def numbered_objects(path: Path, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file of JSON Lines with their lines."""
    from pydantic_core import from_json

    with path.open("rb") as stream:
        line = 0
        while text := stream.readline(_LONGEST_LINE + 1):
            line += 1
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
