"""Detect the format of a file by its content, and call its reader."""

from __future__ import annotations

import csv
from pathlib import Path

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers.chrome_trace import (
    EVENTS_OF_LIST,
    EVENTS_OF_OBJECT,
    read_chrome_trace,
    stream_items,
)
from stagemeter.profiling.readers.files import is_compressed, opened, read_text, require_filled_file
from stagemeter.profiling.readers.mapping import NameMapping
from stagemeter.profiling.readers.nsight_csv import is_nsys_header, read_nsight_csv
from stagemeter.profiling.readers.nsight_sqlite import SQLITE_MAGIC, read_nsight_sqlite
from stagemeter.profiling.readers.plain import is_plain_header, read_plain_csv, read_plain_json
from stagemeter.profiling.readers.vllm import is_prometheus

_FORMATS = (
    "known are torch traces (.json, .json.gz), Nsight Systems exports (.sqlite) and summaries (.csv), and times as "
    "JSON or CSV"
)
#: Most lines that nsys prints before a table.
_PREAMBLE_LINES = 1000


def read_profile(
    path: Path,
    *,
    steps: int,
    mapping: NameMapping,
    prefill_contains_vision: bool | None = None,
) -> Profile:
    """Read the times of stages from a file of any known format.

    Parameters
    ----------
    path : Path
        A torch profiler's Chrome trace, an SQLite export or a CSV summary of Nsight Systems, or plain JSON or CSV. All
        but the database can be compressed by gzip.
    steps : int
        Decode steps of the measured workload: one less than its new tokens.
    mapping : NameMapping
        The model's stages, and patterns for other names.
    prefill_contains_vision : bool, optional
        For summaries, which have no timestamps: whether the vision stages ran inside of the prefill range.

    Returns
    -------
    Profile
        Its `source` names the format.

    Raises
    ------
    StagemeterError
        If the file is missing, empty, damaged, of no known format, or has no time of a stage.
    """
    require_filled_file(path)
    with opened(path) as stream:
        head = stream.read(4096)
    if head.startswith(SQLITE_MAGIC):
        if is_compressed(path):
            raise StagemeterError(f"{path}: is a compressed database, which cannot be read in place; unpack it first")
        return read_nsight_sqlite(path, steps=steps, mapping=mapping)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if prefill_contains_vision is not None and first in (b"[", b"{"):
        raise StagemeterError(
            f"{path}: holds timestamps or times of stages of their own, so that --prefill-contains-vision and "
            "--prefill-without-vision say nothing about it: leave them out"
        )
    if first == b"[":
        return _read_list(path, steps, mapping)
    if first == b"{":
        return _read_object(path, steps, mapping)
    if path.suffix in (".nsys-rep", ".qdrep"):
        raise StagemeterError(f"{path}: is a report; export it by `nsys export --type sqlite {path.name}` first")
    return _read_table(path, read_text(path), steps, mapping, prefill_contains_vision)


def _read_list(path: Path, steps: int, mapping: NameMapping) -> Profile:
    first = next(stream_items(path, EVENTS_OF_LIST), None)
    if first is None:
        raise StagemeterError(f"{path}: is an empty list; the profiler probably recorded nothing")
    if isinstance(first, dict) and "ph" in first:
        return read_chrome_trace(path, EVENTS_OF_LIST, steps=steps, mapping=mapping)
    if isinstance(first, dict) and "stage" in first:
        return read_plain_json(path, read_text(path), steps=steps, mapping=mapping)
    raise StagemeterError(f"{path}: is a JSON list of {shown(first)}, neither trace events nor times; {_FORMATS}")


def _read_object(path: Path, steps: int, mapping: NameMapping) -> Profile:
    if _has_events(path):
        return read_chrome_trace(path, EVENTS_OF_OBJECT, steps=steps, mapping=mapping)
    text = read_text(path)
    if '"traceEvents"' in text:
        raise StagemeterError(f"{path}: is a trace without events; the profiler recorded nothing, or was not stopped")
    return read_plain_json(path, text, steps=steps, mapping=mapping)


def _has_events(path: Path) -> bool:
    """Return whether a JSON object has a list of trace events; read no further than the first."""
    return next(stream_items(path, EVENTS_OF_OBJECT), None) is not None


def _read_table(
    path: Path, text: str, steps: int, mapping: NameMapping, prefill_contains_vision: bool | None
) -> Profile:
    lines = [line for line in text.splitlines()[:_PREAMBLE_LINES] if line.strip()]
    try:
        if any(is_nsys_header(line) for line in lines):
            return read_nsight_csv(
                path, text, steps=steps, mapping=mapping, prefill_contains_vision=prefill_contains_vision
            )
        if lines and is_plain_header(lines[0]):
            return read_plain_csv(path, text, steps=steps, mapping=mapping)
    except csv.Error as error:
        raise StagemeterError(f"{path}: is not CSV: {error}; {_FORMATS}") from None
    if is_prometheus(text):
        raise StagemeterError(f"{path}: is one scrape of a server's metrics; two are needed, some time apart")
    if len(lines) > 1 and any(separator in lines[0] for separator in ",;\t"):
        raise StagemeterError(
            f"{path}: has the header {shown(lines[0])}; a table of times has stage,time_ms[,repeat], as written here; "
            f"{_FORMATS}"
        )
    raise StagemeterError(f"{path}: is of no known format; {_FORMATS}")
