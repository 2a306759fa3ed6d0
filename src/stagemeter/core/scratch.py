"""Temporary files; each process removes those that a killed one left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, which does not remove open files
    fcntl = None  # type: ignore[assignment]

_PREFIX = "stagemeter-scratch-"
_ENDING = ".tmp"


def hold(descriptor: int, wait: bool = False) -> bool | None:
    """Lock a file or folder until its descriptor is closed, or this process ends; `wait` waits for another holder.

    Return whether we hold the lock; None where locks do not exist: on Windows, and on some file systems.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[Path, int]]:
    """Make a temporary file beside another one, and remove it at the end; first remove those of dead processes.

    Yield the empty file, which the block may rename, and its descriptor, which the end of the block closes.
    """
    beginning = f".{target.name}."
    for found in target.parent.iterdir():
        if found.name.startswith(beginning) and found.name.endswith(_ENDING):
            _remove_if_abandoned(found)
    descriptor, path = _new_file(target.parent, beginning)
    try:
        yield path, descriptor
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _new_file(folder: Path, beginning: str) -> tuple[int, Path]:
    while True:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=beginning, suffix=_ENDING)
        # Between the two steps another process may have removed it as abandoned.
        hold(descriptor, wait=True)
        if fcntl is None or os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


@contextmanager
def scratch_folder(place: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder, by default in the system's, and remove it at the end.

    First remove those of dead processes.
    """
    inside = Path(tempfile.gettempdir()) if place is None else place
    for found in inside.glob(f"{_PREFIX}*"):
        _remove_if_abandoned(found)
    descriptor, path = _new_folder(inside)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _new_folder(place: Path) -> tuple[int | None, Path]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        if fcntl is None:
            return None, path
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        hold(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    """Remove a temporary file or folder whose process has ended, unless it is another user's."""
    if fcntl is None:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_uid != os.getuid() or not hold(descriptor):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and lock it against other processes that write a set of files there."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        hold(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
