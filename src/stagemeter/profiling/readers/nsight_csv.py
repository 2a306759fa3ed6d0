"""Summaries that ``nsys stats --format csv`` prints of NVTX ranges.

The reports and their columns, by "Statistical Reports Shipped With Nsight Systems" in NVIDIA's Analysis Guide:

- ``nvtx_pushpop_sum`` (``nvtxppsum`` in older versions), ``nvtx_startend_sum`` and ``nvtx_sum``: time on the CPU:
  ``Total Time``, ``Instances``, ``Range``;
- ``nvtx_gpu_proj_sum``: time on the GPU: ``Total Proj Time``, ``Range Instances``, ``Range``, ``Avg Range Lvl`` (depth
  in the stack of ranges) and ``Avg Num Child``.

Times are in nanoseconds or in the unit of ``--timeunit``, which follows the column's name. Both kinds include nested
ranges: "the time of the child(ren) range(s) is not subtracted from the parent range". A summary has no timestamps, so
the nesting comes from the depths or from the caller.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, PREFILL, REQUEST, VISION
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.ranges import listed
from stagemeter.profiling.readers.checks import exact, milliseconds, require_single
from stagemeter.profiling.readers.choices import NVTX_ON_CPU, NVTX_ON_GPU, count_steps, require_one_request, settle
from stagemeter.profiling.readers.files import Sample, read_text
from stagemeter.profiling.readers.mapping import NameMapping, StageNames

#: Powers of ten from a unit to milliseconds, for the units that ``--timeunit`` prints and takes.
_TO_MS = {"ns": -6, "nsec": -6, "us": -3, "μs": -3, "µs": -3, "usec": -3, "ms": 0, "msec": 0, "s": 3, "sec": 3}
_CPU_TIME, _GPU_TIME = "Total Time", "Total Proj Time"
#: Some locales print commas between groups of three digits.
_GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")
_MOST_INSTANCES, _LARGEST = 2**53, 10**30
_AGAIN = "Print the summary again"
_COLUMN = re.compile(r"(?P<name>.*?)\s*(?:\((?P<unit>[^()]*)\))?")


@dataclass(frozen=True, slots=True)
class _Row:
    """One range of a summary, or several of one stage.

    `total_ms` is the time of all instances; 0 if it was too short to measure. `level` is the mean depth, and `children`
    the mean number of ranges directly inside, if the report has them.
    """

    name: str
    where: str
    total_ms: Decimal
    instances: int
    level: Decimal | None = None
    children: Decimal | None = None


def _is_header(line: str) -> bool:
    columns = {name for name, _ in _columns(line)}
    return "Range" in columns and bool(columns & {_CPU_TIME, _GPU_TIME})


def sniff(sample: Sample) -> bool:
    """Return whether a file holds a table of nsys."""
    return not sample.is_json and any(_is_header(line) for line in sample.lines)


def read(path: Path, *, steps: int, mapping: NameMapping, prefill_contains_vision: bool | None = None) -> Profile:
    """Read the mean times of stages from the output of nsys, with any lines around the table.

    Of several tables, one of GPU times is read. If `prefill_contains_vision` is None, the depths of ranges decide
    whether the vision stages ran inside of the prefill; if they do not show it, times stay as they are.
    """
    on_gpu, rows = _read_table(path, read_text(path))
    names = StageNames(mapping, str(path))
    stages = _by_stage(rows, names, mapping)
    if not stages:
        raise names.none_found("no range is a stage", "Put ranges named as the stages into the program")
    notes: list[str] = []
    requests = _requests(path, stages, notes)
    vision = [stage for stage in (*mapping.vision, VISION) if stage in stages]
    contained, reason = _containment(stages, vision, rows, names, prefill_contains_vision)
    if reason:
        notes.append(reason)
    settled = settle(stages.keys() - {REQUEST}, mapping.vision, prefill_suffices=True)
    notes.extend(settled.notes)
    kept = settled.kept(stages)
    if contained:
        kept = _without_vision(path, kept, vision)
    times, measured = _times(path, kept, requests, steps, notes)
    return Profile(
        times_ms=times,
        source=f"nsys stats summary {path.name}",
        clock=NVTX_ON_GPU if on_gpu else NVTX_ON_CPU,
        request_ms=(_mean_ms(stages[REQUEST], stages[REQUEST].instances),) if REQUEST in stages else (),
        measured=measured,
        notes=(*notes, *names.notes()),
    )


def _columns(line: str) -> list[tuple[str, str]]:
    """Split a header into names of columns and units: ``Total Time (ns)``."""
    matches = [_COLUMN.fullmatch(cell.strip()) for cell in next(csv.reader([line]), [])]
    return [(match["name"], match["unit"] or "") if match else ("", "") for match in matches]


def _read_table(path: Path, text: str) -> tuple[bool, list[_Row]]:
    """Return the rows of the first table of GPU times, else of the first table, and whether they are the GPU's."""
    tables: list[tuple[bool, list[_Row]]] = []
    columns: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if _is_header(line):
            columns = _columns(line)
            require_single(f"{path}: line {number}", [name for name, _ in columns])
            tables.append((any(name == _GPU_TIME for name, _ in columns), []))
        elif not line.strip():
            columns = []
        elif columns:
            tables[-1][1].append(_row(path, number, line, columns))
    filled = [(on_gpu, rows) for on_gpu, rows in tables if rows]
    if not filled:
        raise StagemeterError(f"{path}: the summary has a header and no ranges below. Profile with --trace=cuda,nvtx")
    return next((table for table in filled if table[0]), filled[0])


def _row(path: Path, number: int, line: str, columns: list[tuple[str, str]]) -> _Row:
    cells = next(csv.reader([line]))
    if len(cells) != len(columns):
        raise StagemeterError(
            f"{path}: line {number} has {len(cells)} columns and its header {len(columns)}. Print the summary again"
        )
    units, where = dict(columns), f"{path}: line {number}"
    values = dict(zip(units, cells, strict=True))
    time = _GPU_TIME if _GPU_TIME in values else _CPU_TIME
    if units[time] not in _TO_MS:
        raise StagemeterError(
            f"{path}: {time} is in {units[time]!r}, which is no known unit. Print it with --timeunit nsec"
        )
    total = _number(where, time, values[time])
    column = "Range Instances" if "Range Instances" in values else "Instances"
    instances = _number(where, column, values.get(column, ""))
    if instances != instances.to_integral_value() or instances > _MOST_INSTANCES:
        raise StagemeterError(f"{where}: {column} is {shown(values[column])}, which is no number of ranges. {_AGAIN}")
    level, children = (
        _number(where, name, values[name]) if name in values else None for name in ("Avg Range Lvl", "Avg Num Child")
    )
    return _Row(values["Range"], where, total.scaleb(_TO_MS[units[time]]), int(instances), level, children)


def _number(where: str, column: str, text: str) -> Decimal:
    try:
        number = exact(text.replace(",", "") if _GROUPED.fullmatch(text.strip()) else text)
    except ValueError:
        raise StagemeterError(f"{where}: {column} is {shown(text)}, which is no number. {_AGAIN}") from None
    # Far beyond any count or time; arithmetic below it stays exact.
    if not 0 <= number < _LARGEST:
        raise StagemeterError(f"{where}: {column} is {shown(text)}, which is out of range. {_AGAIN}")
    return number


def _mean_ms(row: _Row, count: int) -> float:
    return milliseconds(f"{row.where}: mean of {row.name}", row.total_ms / count)


def _by_stage(rows: list[_Row], names: StageNames, mapping: NameMapping) -> dict[str, _Row]:
    """Add up the rows of each stage."""
    stages: dict[str, _Row] = {}
    for row in rows:
        stage = names.stage(row.name)
        if stage is None:
            continue
        if not row.total_ms or not row.instances:
            raise StagemeterError(
                f"{row.where}: {row.total_ms.normalize():f} ms in {row.instances} ranges of {stage} is no time. Leave "
                "the row out, or profile longer"
            )
        known = stages.get(stage)
        if known is None:
            stages[stage] = row
            continue
        level = None if row.level is None or known.level is None else min(row.level, known.level)
        children = None if row.children is None or known.children is None else max(row.children, known.children)
        total, instances = known.total_ms + row.total_ms, known.instances + row.instances
        stages[stage] = _Row(row.name, row.where, total, instances, level, children)
    return {stage: stages[stage] for stage in mapping.stages if stage in stages}


def _requests(path: Path, stages: dict[str, _Row], notes: list[str]) -> int:
    """Return the number of requests that a summary adds up."""
    anchor = next((stage for stage in (REQUEST, PREFILL, FORWARD) if stage in stages), None)
    if anchor is None:
        require_one_request({stage: row.instances for stage, row in stages.items()}, str(path))
        return 1
    requests = stages[anchor].instances
    if requests > 1:
        notes.append(f"times are means over {requests} requests, since a summary has no others")
    uneven = [stage for stage, row in stages.items() if row.instances % requests and stage != DECODE]
    if uneven:
        notes.append(
            f"{listed(uneven)} did not run equally often in the {requests} requests, by the number of {anchor} ranges"
        )
    return requests


def _containment(
    stages: dict[str, _Row], vision: list[str], rows: list[_Row], names: StageNames, told: bool | None
) -> tuple[bool, str]:
    """Return whether the vision stages ran inside of the prefill, and the reason."""
    if PREFILL not in stages or not vision:
        return False, ""
    if told is not None:
        return told, f"{PREFILL} {'contains' if told else 'does not contain'} {listed(vision)}, as was told" + (
            ": their time was taken out of it" if told else ""
        )
    shown = _shown_by_depth(stages, vision, rows, names)
    if shown is None:
        return False, (
            f"a summary does not show whether {PREFILL} contains {listed(vision)}: times are taken as they stand, and "
            f"if it does, that of {PREFILL} is too long by theirs; say so by prefill_contains_vision, or bring in the "
            "SQLite export"
        )
    if shown:
        return True, f"{PREFILL} contains {listed(vision)}, as depths of ranges show: their time was taken out of it"
    return False, f"{listed(vision)} ran outside of {PREFILL}, as depths of ranges show"


def _shown_by_depth(stages: dict[str, _Row], vision: list[str], rows: list[_Row], names: StageNames) -> bool | None:
    """Decide by the depths, if only one nesting is possible.

    A range that is no deeper than the prefill is not inside of it. A deeper one is, if no other range at the prefill's
    depth contains ranges.
    """
    prefill = stages[PREFILL]
    levels = [stages[stage].level for stage in vision]
    if prefill.level is None or any(level is None for level in levels):
        return None
    deeper = [level is not None and level > prefill.level for level in levels]
    if not any(deeper) or not prefill.children:
        return False
    siblings = [row for row in rows if row.level == prefill.level and names.stage(row.name) != PREFILL]
    # A fractional mean belongs to ranges at several depths.
    settled = all(row.level == round(row.level) for row in rows if row.level is not None)
    return True if all(deeper) and settled and not any(row.children for row in siblings) else None


def _without_vision(path: Path, stages: dict[str, _Row], vision: list[str]) -> dict[str, _Row]:
    """Subtract the time of the vision stages from the prefill's."""
    inside = sum((row.total_ms for stage, row in stages.items() if stage in vision), Decimal(0))
    rest = stages[PREFILL].total_ms - inside
    if rest <= 0:
        raise StagemeterError(
            f"{path}: the vision stages took {inside:g} ms and {PREFILL} {stages[PREFILL].total_ms:g} ms, so they did "
            "not run inside of it one after the other. Give the SQLite export"
        )
    return {**stages, PREFILL: replace(stages[PREFILL], total_ms=rest)}


def _times(
    path: Path, stages: dict[str, _Row], requests: int, steps: int, notes: list[str]
) -> tuple[dict[str, tuple[float, ...]], dict[str, int]]:
    """Return mean milliseconds by stage, and the fields of the workload that the numbers of ranges contradict."""
    times: dict[str, tuple[float, ...]] = {
        stage: (_mean_ms(row, requests),)
        for stage, row in stages.items()
        if stage not in (REQUEST, DECODE, DECODE_TOTAL)
    }
    whole = stages.get(DECODE_TOTAL, stages.get(DECODE))
    if whole is None:
        return times, {}
    ranges = stages[DECODE].instances if DECODE in stages else requests
    if ranges % requests:
        notes.append(
            f"{ranges} decode ranges are not equally many in each of {requests} requests: {DECODE} is the mean over "
            f"all of them, and there is no {DECODE_TOTAL}, since it would be of different work"
        )
        return {**times, DECODE: (_mean_ms(whole, ranges),)}, {}
    counted = count_steps(ranges // requests, steps, str(path), notes)
    step, total = _mean_ms(whole, requests * counted), _mean_ms(whole, requests)
    return {**times, DECODE: (step,), DECODE_TOTAL: (total,)}, {} if counted == steps else {"new_tokens": counted + 1}
