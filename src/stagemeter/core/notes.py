"""Notes on numbers: all are kept in reports, and a terminal shows those that matter."""

from __future__ import annotations

from collections.abc import Iterable


class KeyNote(str):
    """A note on what changes a number by more than 1 %: work that is left out, assumed or not known, or a given limit.

    It is a string to everything that reads notes.
    """

    __slots__ = ()


def key_notes(notes: Iterable[str]) -> list[str]:
    """Return the notes that matter, as plain strings."""
    return [str(note) for note in notes if isinstance(note, KeyNote)]
