"""Tables of times: JSON, and CSV with a line per time.

``decode`` is the time of one step, and ``decode_total`` that of all steps of a request. Times exclude nested stages.
"""

from __future__ import annotations

import csv
import io
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.json_text import parse_json
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, REQUEST
from stagemeter.profiling.lengths import RequestLengths
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers.checks import exact, milliseconds, require_single
from stagemeter.profiling.readers.choices import require_steps, settle
from stagemeter.profiling.readers.files import Sample, read_text
from stagemeter.profiling.readers.mapping import NameMapping, StageNames, near

_STAGE, _TIME, _REPEAT = "stage", "time_ms", "repeat"
_TIMES = "times_ms"
_FORMS = f'Write {{"sam": 1.2, "prefill": [3.1, 3.2]}}, or [{{"{_STAGE}": "sam", "{_TIME}": 1.2}}]'
#: Containers and types of the fields of `Profile.to_dict` beside the times.
_FIELDS: dict[str, tuple[type[list[Any]] | type[dict[str, Any]], tuple[type, ...]]] = {
    "request_ms": (list, (int, float)),
    "notes": (list, (str,)),
    "measured": (dict, (int,)),
    "metrics": (dict, (int, float)),
    "hardware": (dict, (str,)),
}
#: Largest relative difference between ``decode`` times its steps and ``decode_total``.
_ROUNDING = 0.01


@dataclass(frozen=True, slots=True)
class _Entry:
    """One time, and where it is written."""

    where: str
    name: str
    repeat: int
    milliseconds: float


def sniff(sample: Sample) -> bool:
    """Return whether a file is JSON, or begins with the header of a table of times."""
    if sample.is_json:
        return True
    columns = [cell.strip() for cell in next(csv.reader(sample.lines[:1]), [])]
    return _STAGE in columns and _TIME in columns


def read(path: Path, *, steps: int, mapping: NameMapping) -> Profile:
    """Read times from JSON or CSV.

    JSON is ``{"sam": 1.2, "prefill": [3.1, 3.2]}``, the same below ``time_ms`` or ``times_ms``, the output of
    `Profile.to_dict`, or ``[{"stage": "sam", "time_ms": 1.2, "repeat": 0}]``. CSV has the columns ``stage`` and
    ``time_ms``, and ``repeat`` if there are several times of a stage.
    """
    text = read_text(path)
    if Sample.of(path).is_json:
        return _read_json(path, text, steps, mapping)
    reader = csv.DictReader(io.StringIO(text.strip()), skipinitialspace=True, strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        require_single(f"{path}: line 1", columns)
        reader.fieldnames = columns
        entries = list(_table_entries(path, reader))
    except csv.Error as error:
        raise StagemeterError(
            f"{path}: line {reader.line_num}: it is not CSV ({error}). Write {_STAGE},{_TIME}[,{_REPEAT}]"
        ) from None
    return _profile(path, entries, steps, mapping)


def _read_json(path: Path, text: str, steps: int, mapping: NameMapping) -> Profile:
    # Infinite times pass here, so that a later error can name their stage.
    content = parse_json(text, str(path), infinite=True)
    if isinstance(content, list):
        if content and not (isinstance(content[0], dict) and _STAGE in content[0]):
            raise StagemeterError(
                f"{path}: the JSON list of {shown(content[0])} holds neither trace events nor times. {_FORMS}"
            )
        return _profile(path, list(_listed_entries(path, content)), steps, mapping)
    below = next((key for key in (_TIMES, _TIME) if isinstance(content.get(key), dict)), None)
    entries = list(_keyed_entries(path, content if below is None else content[below], below or ""))
    if isinstance(content.get("source"), str) and isinstance(content.get("clock"), str):
        return _ours(path, entries, content, steps, mapping)
    return _profile(path, entries, steps, mapping)


def profile_of_times(times: Mapping[str, Sequence[float]], *, source: str, steps: int, mapping: NameMapping) -> Profile:
    """Return a profile of milliseconds by stage and repeat; `steps` are the workload's decode steps."""
    where = Path(source)
    entries = _keyed_entries(where, {stage: list(values) for stage, values in times.items()}, "")
    return replace(_profile(where, list(entries), steps, mapping), source=source)


def _keyed_entries(path: Path, times: Mapping[str, Any], below: str) -> Iterable[_Entry]:
    for name, given in times.items():
        where = f"{path}: {below}.{name}" if below else f"{path}: {name}"
        if isinstance(given, dict):
            raise StagemeterError(f"{where}: a dict is no time. {_FORMS}")
        repeats = given if isinstance(given, list) else [given]
        if not repeats:
            raise StagemeterError(f"{where}: the list is empty. Leave the stage out, or give a time")
        for repeat, value in enumerate(repeats):
            place = f"{where}[{repeat}]" if isinstance(given, list) else where
            yield _Entry(place, name, repeat, milliseconds(place, value))


def _listed_entries(path: Path, rows: list[Any]) -> Iterable[_Entry]:
    for index, row in enumerate(rows):
        where = f"{path}: [{index}]"
        if not isinstance(row, dict) or _STAGE not in row or _TIME not in row:
            raise StagemeterError(f"{where}: {shown(row)} has no {_STAGE!r} and {_TIME!r}. {_FORMS}")
        yield _entry(where, row[_STAGE], row[_TIME], row.get(_REPEAT))


def _table_entries(path: Path, reader: csv.DictReader[str]) -> Iterable[_Entry]:
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        if None in row or None in row.values():
            raise StagemeterError(f"{where}: it has other columns than the header. Write {_STAGE},{_TIME}[,{_REPEAT}]")
        value: Any = row[_TIME].strip()
        with suppress(ValueError):
            value = exact(value)
        yield _entry(where, row[_STAGE].strip(), value, row.get(_REPEAT))


def _entry(where: str, name: Any, value: Any, repeat: Any) -> _Entry:
    if not isinstance(name, str) or not name:
        raise StagemeterError(f"{where}: {shown(name)} is no name of a stage. Write one in quotes")
    try:
        number = 0 if repeat is None else int(repeat)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(repeat, (bool, float)):
        raise StagemeterError(f"{where}: {_REPEAT} {shown(repeat)} is no whole number. Number repeats from 0")
    return _Entry(where, name, number, milliseconds(f"{where}: {name}", value))


def _ours(path: Path, entries: list[_Entry], content: Mapping[str, Any], steps: int, mapping: NameMapping) -> Profile:
    """Read the output of `Profile.to_dict`."""
    measured = _field(path, content, "measured")
    times = _profile(path, entries, measured.get("new_tokens", steps + 1) - 1, mapping)
    request_ms, notes = _field(path, content, "request_ms"), _field(path, content, "notes")
    try:
        lengths = None if content.get("lengths") is None else RequestLengths.from_dict(content["lengths"])
    except ValueError as error:
        raise StagemeterError(f"{path}: lengths: {error}. Leave them out") from None
    return replace(
        times,
        source=f"{content['source']}, read from {path.name}",
        clock=content["clock"],
        request_ms=tuple(
            milliseconds(f"{path}: request_ms[{repeat}]", value) for repeat, value in enumerate(request_ms)
        ),
        measured=measured,
        metrics=_field(path, content, "metrics"),
        hardware=_field(path, content, "hardware"),
        notes=(*notes, *(note for note in times.notes if note not in notes)),
        lengths=lengths,
        served=content.get("served"),
        served_model=str(content.get("served_model", "")),
    )


def _field(path: Path, content: Mapping[str, Any], key: str) -> Any:
    """Return a list or dict of `Profile.to_dict`, empty if it is missing; refuse values of another type."""
    container, kinds = _FIELDS[key]
    values: Any = content.get(key) or container()
    largest = sys.float_info.max
    if not isinstance(values, container) or not all(
        isinstance(value, kinds)
        and not isinstance(value, bool)
        and (not isinstance(value, (int, float)) or -largest <= value <= largest)
        for value in (values.values() if isinstance(values, dict) else values)
    ):
        raise StagemeterError(f"{path}: {key}: {shown(values)} does not belong into a profile. Leave it out")
    return values


def _profile(path: Path, entries: list[_Entry], steps: int, mapping: NameMapping) -> Profile:
    if not entries:
        raise StagemeterError(f"{path}: the file holds no times. {_FORMS}")
    names = StageNames(mapping, str(path))
    stages = _by_stage(path, entries, names, mapping)
    settled = settle(stages.keys() - {REQUEST}, mapping.vision, prefill_suffices=False)
    kept = settled.kept(stages)
    request_ms = tuple(kept.pop(REQUEST, {}).values())
    times, notes = _with_both_decodes(path, {stage: [*times.values()] for stage, times in kept.items()}, steps)
    return Profile(
        times_ms={stage: tuple(times[stage]) for stage in mapping.stages if stage in times},
        source=f"times in {path.name}",
        clock="not known",
        request_ms=request_ms,
        notes=(*settled.notes, *notes, *names.notes()),
    )


def _by_stage(
    path: Path, entries: list[_Entry], names: StageNames, mapping: NameMapping
) -> dict[str, dict[int, float]]:
    """Return milliseconds by stage and repeat; several names of a stage add up."""
    stages: dict[str, dict[int, float]] = {}
    repeats: dict[str, set[int]] = {}
    for entry in entries:
        stage = names.stage(entry.name)
        if stage is None:
            raise StagemeterError(
                f"{entry.where}: {entry.name!r} is no stage. Map it, such as --map "
                f"{shlex.quote(f'prefill={entry.name}')}. {near(entry.name, mapping.stages)}"
            )
        given = repeats.setdefault(entry.name, set())
        if entry.repeat in given:
            raise StagemeterError(
                f"{entry.where}: {entry.name} has a time of repeat {entry.repeat} already. "
                f"Number the repeats in a column {_REPEAT!r}"
            )
        given.add(entry.repeat)
        times = stages.setdefault(stage, {})
        times[entry.repeat] = times.get(entry.repeat, 0.0) + entry.milliseconds
    for name, given in repeats.items():
        stage = names.stage(name)
        if stage is not None and given != stages[stage].keys():
            raise StagemeterError(
                f"{path}: {name} and the other parts of {stage} have different repeats. Give the same repeats of all, "
                "so that they can be added up"
            )
    return {stage: dict(sorted(times.items())) for stage, times in stages.items()}


def _with_both_decodes(
    path: Path, times: dict[str, list[float]], steps: int
) -> tuple[dict[str, list[float]], list[str]]:
    """Derive the time of one decode step from that of all, or the reverse."""
    if DECODE not in times and DECODE_TOTAL not in times:
        return times, []
    require_steps(steps, str(path))
    if DECODE_TOTAL not in times:
        return {**times, DECODE_TOTAL: [time * steps for time in times[DECODE]]}, [
            f"{DECODE} is the time of one step, and {DECODE_TOTAL} that of the workload's {steps}"
        ]
    if DECODE not in times:
        return {**times, DECODE: [time / steps for time in times[DECODE_TOTAL]]}, [
            f"{DECODE_TOTAL} is the time of the workload's {steps} steps, and {DECODE} their mean"
        ]
    implied = math.fsum(times[DECODE_TOTAL]) / len(times[DECODE_TOTAL]) * len(times[DECODE]) / math.fsum(times[DECODE])
    if abs(implied - steps) > _ROUNDING * steps:
        raise StagemeterError(
            f"{path}: {DECODE_TOTAL} is {implied:.4g} times {DECODE}, but the workload has {steps} steps. "
            f"Give --new-tokens as measured, {DECODE} as the time of one step, or only one of both"
        )
    return times, []
