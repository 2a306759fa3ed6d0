"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stagemeter.core.errors import StagemeterError
from stagemeter.core.scratch import temporary_beside


def write_whole(path: Path | str, content: str | bytes) -> Path:
    """Write a file so that it is there in full, or as it was before.

    Parameters
    ----------
    path : Path or str
        Where to; missing folders are made.
    content : str or bytes
        What to write; text in UTF-8.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StagemeterError
        If the file cannot be written.
    """
    target = Path(path)
    # A name of a file can hold bytes that are no text: written as escapes.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(target) as temporary:
        temporary.write_bytes(data)
    return target


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Write a file under another name, which takes the place of the target once the block is done, and only then.

    What was written is on the disk before it takes the place of anything: no crash leaves half of it.

    Raises
    ------
    StagemeterError
        If the file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a renaming within one file system.
        with temporary_beside(target) as (temporary, descriptor):
            yield temporary
            # A temporary file is its owner's alone; the result gets the mode that any new file would.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            os.fsync(descriptor)
            temporary.replace(target)
            _sync_folder(target.parent)
    except OSError as error:
        raise StagemeterError(f"{target} cannot be written: {error.strerror or error}; give another folder") from error


def _sync_folder(folder: Path) -> None:
    """Have the new name of a file on the disk, too, where a folder can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_writable(folder: Path, names: Iterable[str] = ()) -> None:
    """Refuse a folder that files cannot be written to, before any work is done.

    Parameters
    ----------
    folder : Path
        The folder; it need not exist yet.
    names : iterable of str
        The files that are to be written.

    Raises
    ------
    StagemeterError
        If it is not a folder, or nothing can be written there.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise StagemeterError(f"{folder} cannot be written to: {existing} is not a folder; give another --output-dir")
    for name in names:
        if (folder / name).is_dir():
            raise StagemeterError(
                f"{folder / name} is a folder, where a file is to be written; give another --output-dir"
            )
    try:
        # Asking for permission is not enough: a file system can be read-only, full or not made for files at all.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise StagemeterError(
            f"{folder} cannot be written to: {error.strerror or error}; give another --output-dir"
        ) from error
