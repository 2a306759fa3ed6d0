"""Guarded reading of outside files: regular ones of a bounded size, as text in a known encoding."""

from __future__ import annotations

import codecs
import os
import reprlib
import stat
from pathlib import Path

from stagemeter.core.errors import StagemeterError

#: Bytes of the largest file to read as a whole. Published configurations and reports have less than 2 MiB.
LARGEST_FILE = 64 * 2**20
# PowerShell redirects a program's output as UTF-16.
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_shortener = reprlib.Repr()
_shortener.maxdict, _shortener.maxstring, _shortener.maxother = 8, 80, 80


def shown(value: object) -> str:
    """Format an outside value for an error as one short line, however long or deep it is."""
    try:
        return _shortener.repr(value)
    except ValueError:
        # Python refuses to write whole numbers of more than 4,300 digits.
        return f"a {type(value).__name__} of {value.bit_length()} bits" if isinstance(value, int) else "a long value"


def outside_path(given: str | os.PathLike[str], setting: str) -> Path:
    """Return a path from the user, ``~`` expanded, or raise an error if no file can have it. It need not exist."""
    text = os.fspath(given)
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError:
        raise StagemeterError(f"{setting}: {shown(text)}: there is no such user. Write the folder in full") from None
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StagemeterError(f"{setting}: {shown(text)} cannot be used: {reason}. Give another path") from None
    return path


def require_file(path: Path, what: str = "file") -> None:
    """Raise an error unless a path is a regular file that can be opened; `what` names the kind of file in errors."""
    try:
        mode = path.stat().st_mode
        # Opening a pipe would wait for a writer.
        if stat.S_ISREG(mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise StagemeterError(f"{path}: no such {what}. Check the path") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise StagemeterError(f"{shown(str(path))}: is no name of a file: {error}. Give another path") from None
    if stat.S_ISDIR(mode):
        raise StagemeterError(f"{path}: is a folder. Give a {what}")
    if not stat.S_ISREG(mode):
        raise StagemeterError(f"{path}: is not a regular file. Save its content to one first")


def read_text(path: Path, what: str = "file", largest: int = LARGEST_FILE) -> str:
    """Read a text file of at most `largest` bytes, in UTF-8 or, with a byte order mark, in UTF-16."""
    require_file(path, what)
    try:
        with path.open("rb") as stream:
            content = stream.read(largest + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) > largest:
        raise StagemeterError(f"{path}: has more than {_size(largest)}, too much for a {what}. Give a smaller one")
    try:
        return decode(content)
    except UnicodeDecodeError as error:
        raise StagemeterError(
            f"{path}: is not text: byte {error.start} is not {error.encoding}. Save it as UTF-8"
        ) from None


def _unreadable(path: Path, error: OSError) -> StagemeterError:
    reason = error.strerror or error
    return StagemeterError(f"{shown(str(path))}: cannot be read: {reason}. Change its permissions, or copy it")


def decode(content: bytes) -> str:
    """Decode bytes by their byte order mark, as UTF-8 without one, or raise UnicodeDecodeError."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding)
    return content.decode("utf-8")


def _size(number: int) -> str:
    return f"{number // 2**20} MiB" if number >= 2**20 else f"{number // 2**10} KiB"
