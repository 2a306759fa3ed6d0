"""Temporary files and folders: kept while their process lives, removed by the next one after it."""

import os
import subprocess
import sys
import tempfile

import pytest

from stagemeter.core.scratch import hold, locked_folder, scratch_folder, temporary_beside
from stagemeter.core.writing import write_whole

LEAVE = """
import os, sys, tempfile
from pathlib import Path
from stagemeter.core.scratch import scratch_folder, temporary_beside
tempfile.tempdir = sys.argv[1]
with scratch_folder() as folder, temporary_beside(Path(sys.argv[1]) / "report.json"):
    (folder / "inside").write_text("x")
    print("ready", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def start(place, what: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE, place, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def names(place) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_what_a_dead_process_left_is_removed_by_the_next(place):
    process = start(place, "die")
    assert process.wait() == -9
    process.communicate()
    assert len(names(place)) == 2
    with scratch_folder() as folder:
        assert folder.is_dir()
    write_whole(place / "report.json", "{}")
    assert names(place) == ["report.json"]


def test_what_a_living_process_uses_stays(place):
    process = start(place, "live")
    with scratch_folder() as folder:
        assert list(folder.iterdir()) == []
    write_whole(place / "report.json", "{}")
    assert len(names(place)) == 3
    process.communicate("")
    assert names(place) == ["report.json"]


def test_folders_of_other_names_are_nobodys_business(place):
    (place / "stagemeter-report").mkdir()
    (place / ".report.json.tmp.kept").write_text("mine")
    with scratch_folder(), temporary_beside(place / "report.json"):
        pass
    assert names(place) == [".report.json.tmp.kept", "stagemeter-report"]


def test_link_that_stands_where_a_leftover_would_is_not_followed(place):
    (place / "valuable").mkdir()
    (place / "stagemeter-scratch-x").symlink_to(place / "valuable")
    with scratch_folder():
        pass
    assert (place / "valuable").is_dir()


def test_file_is_on_the_disk_before_it_takes_the_place_of_another(place, monkeypatch):
    calls = []

    def noted(name):
        function = getattr(os, name)

        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    write_whole(place / "report.json", "{}")
    assert calls == ["fsync", "replace", "fsync"]


def test_one_process_at_a_time_writes_a_set_of_files(place):
    with locked_folder(place / "new"):
        descriptor = os.open(place / "new", os.O_RDONLY)
        assert hold(descriptor) is False
        os.close(descriptor)
    descriptor = os.open(place / "new", os.O_RDONLY)
    assert hold(descriptor) is True
    os.close(descriptor)


def test_name_that_is_no_text_is_written_as_escapes(place):
    write_whole(place / "report.md", "of \udcff")
    assert (place / "report.md").read_bytes() == b"of \\udcff"
