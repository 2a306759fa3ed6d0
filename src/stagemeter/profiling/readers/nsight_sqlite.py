"""SQLite exports of Nsight Systems: NVTX ranges, and the GPU work that they launched.

Made by ``nsys export --type sqlite report.nsys-rep``. The schema is that of "SQLite Schema Reference" and "SQLite
Schema Event Values" in NVIDIA's Nsight Systems Analysis Guide. Tables exist only if they have rows:

============================= =========================================================================================
``NVTX_EVENTS``               ``start``, ``end`` (ns; ``end`` is NULL if the range was never closed), ``eventType`` (59
                              push/pop range, 60 start/end range; 34 is a mark, 75 creates a domain), ``text`` or, for a
                              registered string, ``textId``, ``globalTid``, ``endGlobalTid``
``StringIds``                 ``id``, ``value``
``CUPTI_ACTIVITY_KIND_``      ``RUNTIME``: calls of the CUDA runtime and driver: ``start``, ``globalTid``,
                              ``correlationId``; ``KERNEL``, ``MEMCPY``, ``MEMSET`` and ``GRAPH_TRACE`` (CUDA graphs):
                              work on the GPU: ``start``, ``end`` (ns), ``globalPid``, and the ``correlationId`` of the
                              call that launched it
``TARGET_INFO_GPU``           ``name`` of each GPU
============================= =========================================================================================

``globalTid`` holds hardware, VM, process (24 bits) and thread (the lowest 24 bits); ``globalPid`` the same without
thread. A range's time on the GPU is that of nsys' own ``nvtx_gpu_proj_sum``: from the start of the first to the end of
the last operation whose launch was called within the range, on its thread. SQLite does the joining, with temporary
tables on disk, so that memory stays bounded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.ranges import TimeRange, listed
from stagemeter.profiling.readers.checks import time_range
from stagemeter.profiling.readers.choices import NVTX_ON_CPU, NVTX_ON_GPU, choose_clock
from stagemeter.profiling.readers.files import Sample, is_compressed
from stagemeter.profiling.readers.mapping import NameMapping, StageNames
from stagemeter.profiling.readers.repeats import split_repeats

_MAGIC = b"SQLite format 3\0"
#: Endings of reports, which hold no database.
_REPORTS = (".nsys-rep", ".qdrep")

_PUSH_POP, _START_END = 59, 60
_RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
_GPU_TABLES = tuple(f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE"))
#: Columns that each table must have.
_COLUMNS: dict[str, set[str]] = {
    "NVTX_EVENTS": {"start", "end", "eventType", "text", "globalTid"},
    "StringIds": {"id", "value"},
    _RUNTIME: {"start", "globalTid", "correlationId"},
    **{table: {"start", "end", "correlationId"} for table in _GPU_TABLES},
    "TARGET_INFO_GPU": set(),
}
#: Steps of SQLite's virtual machine for each byte of a database, and for a small one. An export of Nsight Systems takes
#: few a byte; endless views and rows that all join one another take any number.
_STEPS_A_BYTE, _FEWEST_STEPS, _STEPS_AT_A_TIME = 50, 20_000_000, 10_000
#: Divisor that drops a thread's number.
_THREADS = 0x1000000


def sniff(sample: Sample) -> bool:
    """Return whether a file is a database, or the report that such an export is made of."""
    return sample.head.startswith(_MAGIC) or sample.path.suffix in _REPORTS


def read(path: Path, *, steps: int, mapping: NameMapping) -> Profile:
    """Read the times of stages from an export, opened for reading only."""
    if path.suffix in _REPORTS:
        raise StagemeterError(f"{path}: the file is a report. Export it first: `nsys export --type sqlite {path.name}`")
    if is_compressed(path):
        raise StagemeterError(f"{path}: the database is compressed and cannot be read in place. Unpack it first")
    names = StageNames(mapping, str(path))
    with _database(path) as database:
        tables = _tables(path, database)
        ranges, elsewhere, notes = _ranges(path, database, tables, names)
        if not ranges:
            raise names.none_found(
                "no NVTX range was closed", "Put ranges named as the stages into the program, and profile again"
            )
        on_one_thread = {number: part for number, part in ranges.items() if number not in elsewhere}
        gpu = _project(path, database, tables, on_one_thread)
        hardware = _devices(database, tables)
    chosen = choose_clock(list(ranges.values()), gpu, any(table in tables for table in _GPU_TABLES))
    profile = split_repeats(chosen.ranges, steps, str(path), mapping.vision)
    return replace(
        profile,
        source=f"Nsight Systems export {path.name}",
        clock=NVTX_ON_GPU if chosen.on_gpu else NVTX_ON_CPU,
        hardware=hardware,
        notes=(*notes, *chosen.notes, *profile.notes, *names.notes()),
    )


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            # A name can hold any bytes.
            database.text_factory = partial(str, encoding="utf-8", errors="replace")
            _bound(database, path.stat().st_size)
            yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            raise StagemeterError(
                f"{path}: the database takes far more work than one of its size needs. Export the report again"
            ) from None
        # SQLite's messages quote the bytes that they found.
        raise StagemeterError(
            f"{path}: the SQLite database is damaged or cut off ({error}). Export or copy it again"
        ) from None


def _bound(database: sqlite3.Connection, size: int) -> None:
    """Interrupt queries once all of them took more steps than a database of `size` bytes needs."""
    left = max(_FEWEST_STEPS, _STEPS_A_BYTE * size)

    def is_over() -> bool:
        nonlocal left
        left -= _STEPS_AT_A_TIME
        return left < 0

    database.set_progress_handler(is_over, _STEPS_AT_A_TIME)


def _tables(path: Path, database: sqlite3.Connection) -> dict[str, set[str]]:
    """Return the columns of each table; check those that are needed."""
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    if "NVTX_EVENTS" not in names:
        ours = any(name in names for name in ("StringIds", _RUNTIME, *_GPU_TABLES))
        held = f"{len(names)} tables such as {listed(sorted(names)[:3])}" if names else "no tables"
        what = "has no NVTX ranges" if ours else "is no export of Nsight Systems"
        raise StagemeterError(
            f"{path}: the database {what}; it holds {held}. Profile with --trace=cuda,nvtx and ranges named as the "
            "stages, and export the report"
        )
    tables = {
        name: {row[1] for row in database.execute(f"PRAGMA table_info({name})")} for name in _COLUMNS if name in names
    }
    for name, columns in tables.items():
        lacking = sorted(_COLUMNS[name] - columns)
        if lacking:
            raise StagemeterError(
                f"{path}: table {name} lacks {listed(lacking)}. Export the report again with a newer Nsight Systems"
            )
    return tables


def _ranges(
    path: Path, database: sqlite3.Connection, tables: dict[str, set[str]], names: StageNames
) -> tuple[dict[int, TimeRange], set[int], list[str]]:
    """Return the NVTX ranges of stages by row, and the rows of those that ended on another thread."""
    columns = tables["NVTX_EVENTS"]
    registered = "textId" in columns and "StringIds" in tables
    text = "COALESCE(n.text, s.value)" if registered else "n.text"
    strings = "LEFT JOIN StringIds s ON s.id = n.textId" if registered else ""
    end_thread = "n.endGlobalTid" if "endGlobalTid" in columns else "NULL"
    rows = database.execute(
        f"SELECT n.rowid, {text}, n.start, n.end, n.globalTid, {end_thread} FROM NVTX_EVENTS n {strings} "
        f"WHERE n.eventType IN ({_PUSH_POP}, {_START_END})"
    )
    ranges: dict[int, TimeRange] = {}
    elsewhere: set[int] = set()
    unclosed = 0
    for number, name, start, end, thread, ended_on in rows:
        stage = names.stage(name) if isinstance(name, str) else None
        if stage is None:
            continue
        if end is None:
            unclosed += 1
            continue
        ranges[number] = time_range(f"{path}: NVTX range {number}, {shown(name)}", stage, start, end, str(thread))
        if ended_on not in (None, thread):
            elsewhere.add(number)
    return ranges, elsewhere, [f"{unclosed} ranges of stages were never closed and are left out"] if unclosed else []


def _project(
    path: Path, database: sqlite3.Connection, tables: dict[str, set[str]], ranges: dict[int, TimeRange]
) -> list[TimeRange]:
    """Return the GPU ranges of the NVTX ranges that launched work."""
    work = [table for table in _GPU_TABLES if table in tables]
    if not work or _RUNTIME not in tables:
        return []
    database.execute("CREATE TEMP TABLE stages (number INTEGER PRIMARY KEY)")
    database.executemany("INSERT INTO temp.stages VALUES (?)", ((number,) for number in ranges))
    # Correlation ids belong to a process; an export of one process can leave it out.
    process = {table: f"globalPid / {_THREADS}" if "globalPid" in tables[table] else "NULL" for table in work}
    database.execute(
        "CREATE TEMP TABLE work AS "
        + " UNION ALL ".join(
            f"SELECT correlationId, {process[table]} AS process, start, end FROM {table} WHERE end > 0"
            for table in work
        )
    )
    database.execute("CREATE INDEX temp.work_by_call ON work (correlationId, process)")
    database.execute(
        "CREATE TEMP TABLE launches AS SELECT r.globalTid AS thread, r.start AS called, "
        f"MIN(w.start) AS start, MAX(w.end) AS end FROM {_RUNTIME} r "
        "JOIN temp.work w ON w.correlationId = r.correlationId "
        f"AND (w.process IS NULL OR w.process = r.globalTid / {_THREADS}) "
        "GROUP BY r.rowid"
    )
    database.execute("CREATE INDEX temp.launches_by_call ON launches (thread, called)")
    projected = database.execute(
        "SELECT n.rowid, MIN(l.start), MAX(l.end) FROM temp.stages s JOIN NVTX_EVENTS n ON n.rowid = s.number "
        "JOIN temp.launches l ON l.thread = n.globalTid AND l.called BETWEEN n.start AND n.end GROUP BY n.rowid"
    )
    return [
        time_range(f"{path}: GPU work of NVTX range {number}", ranges[number].name, start, end, ranges[number].lane)
        for number, start, end in projected
    ]


def _devices(database: sqlite3.Connection, tables: dict[str, set[str]]) -> dict[str, str]:
    if "name" not in tables.get("TARGET_INFO_GPU", ()):
        return {}
    names = dict.fromkeys(name for (name,) in database.execute("SELECT name FROM TARGET_INFO_GPU") if name)
    return {"device": ", ".join(names)} if names else {}
