"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stagemeter.errors import StagemeterError


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
    data = content.encode() if isinstance(content, str) else content
    with replacing(target) as temporary:
        temporary.write_bytes(data)
    return target


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Write a file under another name, which takes the place of the target once the block is done, and only then.

    Raises
    ------
    StagemeterError
        If the file cannot be written.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a renaming within one file system.
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        # A temporary file is its owner's alone; the result gets the mode that any new file would.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        raise StagemeterError(f"{target} cannot be written: {error.strerror or error}; give another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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
