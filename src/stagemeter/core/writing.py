"""Write files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stagemeter.core.errors import StagemeterError
from stagemeter.core.scratch import temporary_beside


def write_whole(path: Path | str, content: str | bytes) -> Path:
    """Write a file in full, text as UTF-8, or leave it as it was; missing folders are made."""
    target = Path(path)
    # A file's name can hold bytes that are no text. They become escapes.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(target) as temporary:
        temporary.write_bytes(data)
    return target


@contextmanager
def replacing(target: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary file that replaces the target at the end of the block.

    Its content is on the disk before it replaces anything, so no crash leaves half of it. The temporary file stands
    beside the target, or beside another file of the same file system: a killed process leaves it there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The last step must rename within one file system.
        with temporary_beside(beside or target) as (temporary, descriptor):
            yield temporary
            # A temporary file is private; the result gets the mode of any new file.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            os.fsync(descriptor)
            temporary.replace(target)
            _sync_folder(target.parent)
    except OSError as error:
        raise StagemeterError(f"{target}: cannot be written: {error.strerror or error}. Give another folder") from error


def _sync_folder(folder: Path) -> None:
    """Write a file's new name to the disk, where the system opens folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_writable(folder: Path, names: Iterable[str] = ()) -> None:
    """Refuse a folder that cannot be written to, before any work is done.

    The folder need not exist yet. `names` are the files to write.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise StagemeterError(f"{folder}: cannot be written to: {existing} is not a folder. Give another folder")
    for name in names:
        if (folder / name).is_dir():
            raise StagemeterError(f"{folder / name}: is a folder, where a file is to be written. Give another folder")
    try:
        # Permissions are not enough: a file system can be read-only or full.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise StagemeterError(
            f"{folder}: cannot be written to: {error.strerror or error}. Give another folder"
        ) from error
