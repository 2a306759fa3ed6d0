"""Nsight Systems' SQLite exports, made here by the documented schema.

Column lists are those of "SQLite Schema Reference" in NVIDIA's Nsight Systems Analysis Guide, less columns that have
nothing to do with time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from pages_of_deepseek import NameMapping, read_profile

from stagemeter.core.errors import StagemeterError

SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE NVTX_EVENTS (
    start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, category INTEGER, color INTEGER,
    text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER REFERENCES StringIds(id), domainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
    start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,
    correlationId INTEGER, nameId INTEGER NOT NULL REFERENCES StringIds(id), returnValue INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, shortName INTEGER NOT NULL,
    graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL,
    copyKind INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, value INTEGER NOT NULL,
    bytes INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (
    start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, graphId INTEGER, graphExecId INTEGER);
CREATE TABLE TARGET_INFO_GPU (id INTEGER NOT NULL PRIMARY KEY, name TEXT, busLocation TEXT);
"""
#: <hardware:8><VM:8><process:24><thread:24>
PROCESS = (0x01 << 48) + (1234 << 24)
THREAD, OTHER_THREAD = PROCESS + 1234, PROCESS + 1240
US = 1000
PUSH_POP, START_END, MARK, DOMAIN = 59, 60, 34, 75


class Export:
    """Writes an export, in microseconds."""

    def __init__(self, path: Path, without: Iterable[str] = ()) -> None:
        self.path = path
        self.database = sqlite3.connect(path)
        self.database.executescript(SCHEMA)
        for table in without:
            self.database.execute(f"DROP TABLE {table}")
        self.calls = 0
        self.strings: dict[str, int] = {}

    def string(self, value: str) -> int:
        if value not in self.strings:
            self.strings[value] = len(self.strings) + 1
            self.database.execute("INSERT INTO StringIds VALUES (?, ?)", (self.strings[value], value))
        return self.strings[value]

    def range(
        self,
        name: str,
        start: float,
        end: float | None,
        kind: int = PUSH_POP,
        thread: int = THREAD,
        registered: bool = False,
        ends_on: int | None = None,
    ) -> None:
        self.database.execute(
            "INSERT INTO NVTX_EVENTS (start, end, eventType, text, textId, globalTid, endGlobalTid, domainId) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            (
                start * US,
                None if end is None else end * US,
                kind,
                None if registered else name,
                self.string(name) if registered else None,
                thread,
                ends_on,
            ),
        )

    def launch(
        self, called: float, start: float, end: float, kind: str = "KERNEL", thread: int = THREAD, stream: int = 7
    ) -> None:
        self.calls += 1
        self.database.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, ?, 0)",
            (called * US, (called + 1) * US, thread, self.calls, self.string("cudaLaunchKernel_v7000")),
        )
        rest = {"KERNEL": (1, None), "MEMCPY": (64, 1), "MEMSET": (0, 64), "GRAPH_TRACE": (1, 1)}[kind]
        self.database.execute(
            f"INSERT INTO CUPTI_ACTIVITY_KIND_{kind} VALUES (?, ?, 0, 1, ?, ?, ?, ?, ?)",
            (start * US, end * US, stream, self.calls, thread & ~0xFFFFFF, *rest),
        )

    def close(self) -> Path:
        self.database.commit()
        self.database.close()
        return self.path


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path / "report.sqlite")


def fill(export: Export, at: float = 0) -> None:
    """A request whose CPU ranges end long before the GPU has done what they launched."""
    export.range("prefill", at, at + 50)
    export.range("sam", at + 5, at + 15)
    for step in range(3):
        export.range("decode", at + 50 + 5 * step, at + 54 + 5 * step)
    export.launch(at + 2, at + 20, at + 22, "MEMCPY")
    export.launch(at + 6, at + 30, at + 100)
    export.launch(at + 8, at + 100, at + 230, stream=8)
    export.launch(at + 16, at + 230, at + 240, "MEMSET")
    export.launch(at + 20, at + 240, at + 600)
    for step in range(3):
        export.launch(at + 51 + 5 * step, at + 600 + 40 * step, at + 635 + 40 * step, "GRAPH_TRACE")


def test_ranges_are_projected_onto_the_gpu(export: Export) -> None:
    fill(export)
    fill(export, at=1000)
    export.database.execute("INSERT INTO TARGET_INFO_GPU VALUES (0, 'NVIDIA A100-SXM4-80GB', '0000:01:00.0')")
    profile = read_profile(export.close(), steps=3)
    # prefill: from its copy at 20 to 600, less sam from 30 to 230, on both streams.
    assert profile.times_ms == {
        "sam": (0.2, 0.2),
        "prefill": (0.38, 0.38),
        "decode": (0.035, 0.035),
        "decode_total": (0.105, 0.105),
    }
    assert profile.clock == "GPU ranges (NVTX ranges projected onto their GPU work)"
    assert profile.source == "Nsight Systems export report.sqlite"
    assert profile.hardware == {"device": "NVIDIA A100-SXM4-80GB"}
    assert profile.notes == ("prefill contains sam: its time was taken out of it",)


def test_without_gpu_work_the_cpus_time_stands(tmp_path: Path) -> None:
    tables = [f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("RUNTIME", "KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE")]
    export = Export(tmp_path / "report.sqlite", [*tables, "TARGET_INFO_GPU"])
    export.range("prefill", 0, 50)
    export.range("sam", 5, 15)
    profile = read_profile(export.close(), steps=3)
    assert profile.times_ms == {"sam": (0.01,), "prefill": (0.04,)}
    assert (profile.clock, profile.hardware) == ("CPU ranges (NVTX)", {})
    assert not any("a CPU scope may end" in note for note in profile.notes)


def test_gpu_work_that_no_range_launched_comes_with_a_warning(export: Export) -> None:
    export.range("prefill", 0, 50)
    export.launch(60, 70, 80)
    profile = read_profile(export.close(), steps=3)
    assert profile.clock == "CPU ranges (NVTX)"
    assert any("a CPU scope may end before the work that it launched" in note for note in profile.notes)


def test_launches_of_other_threads_and_processes_are_not_a_ranges_own(export: Export) -> None:
    export.range("prefill", 0, 50)
    export.launch(10, 100, 200)
    export.launch(12, 50, 900, thread=OTHER_THREAD)
    # Another process whose calls have the same numbers.
    stranger = (0x01 << 48) + (99 << 24)
    export.database.execute(
        "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (1, 9000000, 0, 1, 7, 1, ?, 1, 0)", (stranger,)
    )
    assert read_profile(export.close(), steps=3).times_ms == {"prefill": (0.1,)}


def test_process_of_gpu_work_need_not_be_named(export: Export) -> None:
    fill(export)
    export.database.commit()
    with_process = read_profile(export.path, steps=3)
    for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE"):
        export.database.execute(f"ALTER TABLE CUPTI_ACTIVITY_KIND_{kind} DROP COLUMN globalPid")
    assert read_profile(export.close(), steps=3) == with_process


def test_names_may_be_registered_strings(export: Export) -> None:
    export.range("prefill", 0, 50, registered=True)
    export.range("vit.sam", 5, 15, registered=True)
    profile = read_profile(export.close(), steps=3, mapping=NameMapping({"sam": ["vit.*"]}))
    assert profile.times_ms == {"sam": (0.01,), "prefill": (0.04,)}


def test_kinds_of_events(export: Export) -> None:
    export.range("prefill", 0, 50, kind=START_END)
    export.range("sam", 5, 45, kind=MARK)
    export.range("clip", 5, 45, kind=DOMAIN)
    assert read_profile(export.close(), steps=3).times_ms == {"prefill": (0.05,)}


def test_ranges_that_end_elsewhere_are_not_projected(export: Export) -> None:
    export.range("prefill", 0, 50, kind=START_END, ends_on=OTHER_THREAD)
    export.launch(10, 100, 200)
    profile = read_profile(export.close(), steps=3)
    assert (profile.times_ms, profile.clock) == ({"prefill": (0.05,)}, "CPU ranges (NVTX)")


def test_ranges_that_were_never_closed_are_left_out(export: Export) -> None:
    export.range("prefill", 0, 50)
    export.range("decode", 50, None)
    profile = read_profile(export.close(), steps=3)
    assert profile.times_ms == {"prefill": (0.05,)}
    assert "1 ranges of stages were never closed and are left out" in profile.notes


def test_operators_annotated_one_by_one_are_no_matter(export: Export) -> None:
    fill(export)
    for number in range(2000):
        export.range(f"aten::add, seq = {number}", number / 100, number / 100 + 0.5)
    assert read_profile(export.close(), steps=3).times_ms["sam"] == (0.2,)


def test_the_export_is_not_written_to(export: Export) -> None:
    fill(export)
    path = export.close()
    before, changed = path.read_bytes(), path.stat().st_mtime_ns
    path.chmod(0o444)
    read_profile(path, steps=3)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, changed)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_path_may_have_characters_that_addresses_use(tmp_path: Path) -> None:
    folder = tmp_path / "a b?c#d%20"
    folder.mkdir()
    export = Export(folder / "r.sqlite")
    fill(export)
    assert read_profile(export.close(), steps=3).times_ms["sam"] == (0.2,)


def test_an_export_without_ranges_of_stages_says_what_it_has(export: Export) -> None:
    export.range("Prefill", 0, 5)
    with pytest.raises(
        StagemeterError,
        match=r"no range has the name of a stage; there are Prefill. Map them, such as --map prefill=Pre",
    ):
        read_profile(export.close(), steps=3)


def test_an_export_without_nvtx_is_refused(tmp_path: Path) -> None:
    path = Export(tmp_path / "report.sqlite", ["NVTX_EVENTS"]).close()
    with pytest.raises(
        StagemeterError, match=r"report\.sqlite: the database has no NVTX ranges; .*\. Profile with --trace=cuda,nvtx"
    ):
        read_profile(path, steps=3)


def test_other_databases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE runs (id)")
        database.commit()
    with pytest.raises(
        StagemeterError,
        match=r"mlflow\.db: the database is no export of Nsight Systems; it holds 1 tables such as runs",
    ):
        read_profile(path, steps=3)


def test_a_table_without_its_columns_is_refused(export: Export) -> None:
    export.database.execute("ALTER TABLE NVTX_EVENTS DROP COLUMN globalTid")
    with pytest.raises(StagemeterError, match=r"table NVTX_EVENTS lacks globalTid. Export the report again"):
        read_profile(export.close(), steps=3)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_an_export_that_was_cut_off_is_refused(export: Export, share: float) -> None:
    for at in range(0, 400_000, 1000):
        fill(export, at)
    path = export.close()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StagemeterError, match=r"report\.sqlite: the SQLite database is damaged or cut off"):
        read_profile(path, steps=3)


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"\7" * 500)
    with pytest.raises(StagemeterError, match=r"report\.sqlite: the SQLite database is damaged or cut off"):
        read_profile(path, steps=3)


def test_times_that_are_none_are_refused(export: Export) -> None:
    export.range("prefill", 50, 0)
    with pytest.raises(StagemeterError, match=r"NVTX range 1, 'prefill': a range from 50000 to 0 is no time"):
        read_profile(export.close(), steps=3)


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE StringIds (id, value); CREATE VIEW NVTX_EVENTS AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL "
        "SELECT x + 1 FROM r) SELECT x AS start, x AS end, 'a' AS text, 59 AS eventType, 1 AS globalTid FROM r",
        "CREATE TABLE StringIds (id, value); CREATE TABLE NVTX_EVENTS (start, end, text, textId, eventType, globalTid);"
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 5000) INSERT INTO StringIds "
        "SELECT 1, 'a' FROM r; INSERT INTO NVTX_EVENTS SELECT 1, 2, NULL, 1, 59, 1 FROM StringIds",
    ],
)
def test_work_without_end_is_refused(statements: str, tmp_path: Path) -> None:
    path = tmp_path / "report.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(statements)
    with pytest.raises(StagemeterError, match="more work than one of its size"):
        read_profile(path, steps=3)
