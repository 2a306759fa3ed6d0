"""Files that are written whole or not at all."""

import errno
import os
import stat
import tempfile

import pytest

from stagemeter import StagemeterError
from stagemeter.core.writing import require_writable, write_whole


def test_missing_folders_are_made(tmp_path):
    path = write_whole(tmp_path / "a" / "b" / "text.md", "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()


def test_existing_file_is_replaced(tmp_path):
    path = tmp_path / "text.md"
    path.write_text("a much longer text than the new one")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    path = write_whole(tmp_path / "text.md", "text")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "report.json"
    path.write_text("old")

    def refused(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(type(path), step, refused)
        with pytest.raises(StagemeterError, match=r"report\.json: cannot be written: No space left on device"):
            write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    path = tmp_path / "report.json"
    with monkeypatch.context() as broken:
        broken.setattr(type(path), "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "new")
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StagemeterError, match="cannot be written"):
        write_whole(tmp_path / "file" / "report.json", "text")
    with pytest.raises(StagemeterError, match=r"file is not a folder\. Give another folder"):
        require_writable(tmp_path / "file" / "deeper")


def test_folder_that_refuses_files_is_refused(tmp_path, monkeypatch):
    """A read-only or full file system refuses every user."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(StagemeterError, match="cannot be written to: Read-only file system"):
        require_writable(tmp_path / "new" / "folder")


def test_folder_where_a_file_is_to_be_written_is_refused(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(StagemeterError, match=r"report\.json: is a folder"):
        require_writable(tmp_path, ["other.md", "report.json"])


def test_folder_that_is_not_there_yet_is_not_made_by_asking(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
