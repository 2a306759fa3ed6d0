"""Open files of other tools: plain, compressed, and text in the encodings that shells write."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import LARGEST_FILE, decode, require_file

_GZIP = b"\x1f\x8b"
#: Bytes and lines by which readers know a format; nsys prints some lines before a table.
_HEAD, _LINES = 4096, 1000
#: Advice for a file that lacks its end.
CUT_OFF = "Profile it again, or copy it again in full"


@dataclass(frozen=True)
class Sample:
    """The beginning of a file, decompressed, by which readers know its format."""

    path: Path
    head: bytes

    @classmethod
    def of(cls, path: Path) -> Sample:
        """Read the beginning of a file."""
        with opened(path) as stream:
            return cls(path, stream.read(_HEAD))

    @property
    def opening(self) -> bytes:
        """The first character of the content; ``[`` or ``{`` of JSON."""
        return self.head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]

    @property
    def is_json(self) -> bool:
        """Whether the file begins as JSON does."""
        return self.opening in (b"[", b"{")

    @cached_property
    def lines(self) -> list[str]:
        """The first lines that are not empty."""
        return [line for line in read_text(self.path).splitlines()[:_LINES] if line.strip()]


def require_filled_file(path: Path) -> None:
    """Refuse a path that is missing, empty, not readable or no file."""
    require_file(path)
    if path.stat().st_size == 0:
        raise StagemeterError(f"{path}: the file is empty. Let the profiler finish, and export it again")


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed by gzip."""
    with path.open("rb") as raw:
        return raw.read(len(_GZIP)) == _GZIP


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, and decompress it as it is read if gzip compressed it.

    Damaged or cut-off data raise StagemeterError, also inside the block.
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
        raise StagemeterError(f"{path}: the compressed data end in the middle. {CUT_OFF}") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise StagemeterError(f"{path}: the compressed data are damaged ({error}). Copy or export it again") from None
    except OSError as error:
        raise StagemeterError(f"{path}: the file cannot be read: {error.strerror or error}. Give another one") from None


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark; refuse a file too large for a table."""
    with opened(path) as stream:
        content = stream.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise StagemeterError(
            f"{path}: the file has more than {LARGEST_FILE // 2**20} MiB and is no trace. Give a table of times"
        )
    try:
        return decode(content)
    except UnicodeDecodeError as error:
        raise StagemeterError(
            f"{path}: the file is neither a trace, a database nor text (byte {error.start} is not {error.encoding}). "
            "Give one of the formats in docs/profiles.md"
        ) from None
