"""Formats by content, and files of no format."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pages_of_deepseek import read_profile
from traced_requests import PEAK_MEMORY

from stagemeter.core.errors import StagemeterError

TABLE = "stage,time_ms\nsam,1.5\n"


@pytest.mark.parametrize("name", ["times.csv", "times.json", "times.sqlite", "times"])
def test_the_name_does_not_matter(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TABLE)
    assert read_profile(tmp_path / name, steps=3).times_ms == {"sam": (1.5,)}
    (tmp_path / name).write_text('{"sam": 1.5}')
    assert read_profile(tmp_path / name, steps=3).times_ms == {"sam": (1.5,)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_in_the_encodings_of_shells(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "times.csv"
    path.write_bytes(TABLE.replace("\n", "\r\n").encode(encoding))
    assert read_profile(path, steps=3).times_ms == {"sam": (1.5,)}


def test_tables_may_be_compressed(tmp_path: Path) -> None:
    for text in (TABLE, '{"sam": 1.5}'):
        (tmp_path / "times.gz").write_bytes(gzip.compress(text.encode()))
        assert read_profile(tmp_path / "times.gz", steps=3).times_ms == {"sam": (1.5,)}


def test_a_byte_order_mark_before_json_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_bytes('\ufeff{"sam": 1.5}'.encode())
    assert read_profile(path, steps=3).times_ms == {"sam": (1.5,)}
    scope = {"ph": "X", "cat": "user_annotation", "name": "sam", "ts": 0, "dur": 1500}
    path.write_bytes(("\ufeff" + json.dumps({"traceEvents": [scope]})).encode())
    assert read_profile(path, steps=3).times_ms == {"sam": (1.5,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty. Let the profiler finish"),
        (b"\n \n", "the file has no known format. Give a torch trace"),
        (b"hello", "the file has no known format. Give a torch trace"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe" * 9, "the file is neither a trace, a database nor text"),
        (b"a,b\n1,2\n", "the header 'a,b' is not that of a table of times, stage,time_ms"),
        (b"[]", "the list is empty. Profile again"),
        (b"[1, 2]", "the JSON list of 1 holds neither trace events nor times"),
        (b'[{"a": "' + b"x" * 99 + b'"}]', r"the JSON list of {'a': 'x+\.\.\.x+'} holds neither"),
        (b'{"a": 1}', "'a' is no stage"),
        (b'{"metrics": {"a": 1}}', "metrics: a dict is no time"),
        (b'{"sam": ', "the JSON ends in the middle"),
        (b'{"sam": 1.5,}', "is not JSON"),
        (b'{"sam": NaN}', r"is not JSON .*NaN"),
        (b'{"sam": ' + b"9" * 400 + b"}", "a whole number has 400 digits"),
        (b'{"sam": ' + b"9" * 50_000 + b"}", "a whole number has 10,000 digits or more"),
        (b'{"sam": ' + b"[" * 5000 + b"]" * 5000 + b"}", "is nested more than 64 levels deep"),
        (b"[" * 5000 + b"]" * 5000, "is nested more than 64 levels deep"),
        (b'{"traceEvents": ' + b"[" * 5000 + b"]" * 5000 + b"}", "is nested more than 64 levels deep"),
        (b"stage,time_ms\nsam,\x00\n", "is no number|not CSV"),
        (b"# TYPE vllm:prompt_tokens_total counter\n", "one scrape of a server's metrics shows no time. Give two"),
        (b'vllm:prompt_tokens_total{model_name="m"} 1\n', "one scrape of a server's metrics shows no time. Give two"),
        (gzip.compress(b"", mtime=0), "the file has no known format"),
        (gzip.compress(b"SQLite format 3\0", mtime=0), "the database is compressed"),
        (b"\x1f\x8b", "the compressed data end in the middle"),
        (b"\x1f\x8bnonsense", "the compressed data (are damaged|end in the middle)"),
    ],
)
def test_foreign_and_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.dat"
    path.write_bytes(content)
    with pytest.raises(StagemeterError, match=message) as caught:
        read_profile(path, steps=3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_report_is_to_be_exported_first(tmp_path: Path) -> None:
    path = tmp_path / "run.nsys-rep"
    path.write_bytes(b"\x00\x01QD report \xff")
    with pytest.raises(
        StagemeterError, match=r"the file is a report. Export it first: `nsys export --type sqlite run\.nsys-rep`"
    ):
        read_profile(path, steps=3)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StagemeterError, match="no such file"):
        read_profile(tmp_path / "none.json", steps=3)
    with pytest.raises(StagemeterError, match=r"is a folder\. Give a file"):
        read_profile(tmp_path, steps=3)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StagemeterError, match="is not a regular file"):
        read_profile(tmp_path / "pipe", steps=3)
    with pytest.raises(StagemeterError, match="is no name of a file"):
        read_profile(Path("a\0b"), steps=3)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    path.write_text(TABLE)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root, who runs tests in containers, may read everything.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StagemeterError, match=r"trace\.json'?: cannot be read: Permission denied"):
        read_profile(path, steps=3)


def test_large_files_that_are_no_traces_are_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagemeter.profiling.readers.files.LARGEST_FILE", 1000)
    for content in (b'{"a": "' + b"x" * 2000 + b'"}', b"words " * 400):
        (tmp_path / "large").write_bytes(content)
        with pytest.raises(StagemeterError, match=r"large: the file has more than .* MiB and is no trace"):
            read_profile(tmp_path / "large", steps=3)


def test_many_keys_and_repeats_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "times"
    path.write_text(json.dumps({f"key {number}": 1 for number in range(200_000)}))
    with pytest.raises(StagemeterError, match="'key 0' is no stage"):
        read_profile(path, steps=3)
    path.write_text("stage,time_ms,repeat\n" + "".join(f"sam,1.5,{repeat}\n" for repeat in range(50_000)))
    assert len(read_profile(path, steps=3).times_ms["sam"]) == 50_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_an_export(tmp_path: Path) -> None:
    """A million launches: SQLite joins them on disk."""
    path = tmp_path / "report.sqlite"
    process, count = 77 << 24, 1_000_000
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "CREATE TABLE NVTX_EVENTS (start, end, eventType, text, globalTid);"
            "CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start, globalTid, correlationId);"
            "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start, end, globalPid, correlationId);"
        )
        database.execute("INSERT INTO NVTX_EVENTS VALUES (0, ?, 59, 'prefill', ?)", (2000 * count, process + 1))
        database.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?)",
            ((1000 * call, process + 1, call) for call in range(count)),
        )
        database.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?)",
            ((2000 * call, 2000 * call + 500, process, call) for call in range(count)),
        )
        database.commit()
    code = (
        "import sys; from pathlib import Path; from stagemeter.profiling.readers import NameMapping, read_profile\n"
        "times = read_profile(Path(sys.argv[1]), steps=3, mapping=NameMapping([])).times_ms\n"
        f"print(times['prefill'][0], {PEAK_MEMORY})"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    milliseconds, peak = run.stdout.split()
    assert float(milliseconds) == pytest.approx((2000 * (count - 1) + 500) / 1e6)
    assert int(peak) < 100 * 2**20
