"""Opening what other tools wrote: files, compressed files, text in the encodings that shells write."""

from __future__ import annotations

import codecs
import gzip
import io
import reprlib
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stagemeter.errors import StagemeterError

#: Tables and lists of times are small; a file beyond this is something else, and is not read into memory.
LARGEST_TABLE = 64 * 2**20

_shortener = reprlib.Repr()
_shortener.maxdict, _shortener.maxstring = 8, 80

_GZIP = b"\x1f\x8b"
# PowerShell redirects a program's output as UTF-16.
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def require_filled_file(path: Path) -> None:
    """Refuse what cannot hold times.

    Raises
    ------
    StagemeterError
        If there is no such file, or it is a folder, a device, empty or not readable.
    """
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise StagemeterError(f"{path}: no such file") from None
    except OSError as error:
        raise StagemeterError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise StagemeterError(f"{str(path)!r}: is no name of a file: {error}") from None
    if stat.S_ISDIR(found.st_mode):
        raise StagemeterError(f"{path}: is a folder; give a file")
    if not stat.S_ISREG(found.st_mode):
        raise StagemeterError(f"{path}: is not a regular file; save its content to one first")
    if found.st_size == 0:
        raise StagemeterError(f"{path}: is empty; the profiler probably did not finish writing it")


def is_compressed(path: Path) -> bool:
    """Tell whether a file is compressed by gzip."""
    with path.open("rb") as raw:
        return raw.read(len(_GZIP)) == _GZIP


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that may be compressed by gzip, and decompress it as it is read.

    Raises
    ------
    StagemeterError
        In the block, too: if the compressed data are damaged or end too early.
    """
    try:
        compressed = is_compressed(path)
        with path.open("rb") as raw:
            if not compressed:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(unpacked)
    except EOFError:
        raise StagemeterError(f"{path}: the compressed data end in the middle; {cut_off()}") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise StagemeterError(f"{path}: the compressed data are damaged ({error}); copy or export it again") from None
    except OSError as error:
        raise StagemeterError(f"{path}: cannot be read: {error.strerror or error}") from None


def cut_off() -> str:
    """Say what to do with a file that lacks its end."""
    return "the profiler was probably stopped while it wrote, or the copy was; profile or copy again"


def read_text(path: Path) -> str:
    """Read a table or a list of times, in UTF-8 or, with a byte order mark, UTF-16.

    Raises
    ------
    StagemeterError
        If it is too large for one, or is not text.
    """
    with opened(path) as stream:
        content = stream.read(LARGEST_TABLE + 1)
    if len(content) > LARGEST_TABLE:
        raise StagemeterError(
            f"{path}: is larger than {LARGEST_TABLE // 2**20} MiB, and no trace; a table of times is smaller"
        )
    return decode(path, content)


def decode(path: Path, content: bytes) -> str:
    """Turn bytes into text by their byte order mark, UTF-8 without one."""
    mark, encoding = next(
        ((mark, name) for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), (b"", "utf-8")
    )
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise StagemeterError(
            f"{path}: is neither a trace, a database nor text (byte {error.start} is not {encoding}); "
            f"give a file of one of the formats in docs/profiles.md"
        ) from None


def shown(value: Any) -> str:
    """Write a value that was found in a file for an error, however large or deep it is."""
    return _shortener.repr(value)
