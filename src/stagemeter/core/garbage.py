"""Fewer collections of objects that only refer to each other."""

from __future__ import annotations

import atexit
import gc

#: New objects between two searches, about 140 times Python's default.
_BETWEEN_SEARCHES = 100_000


def collect_rarely() -> None:
    """Search seldom, and not at exit: most objects of a command come from imports, and stay.

    Otherwise the searches take a third of the time of importing torch and transformers.
    """
    gc.set_threshold(_BETWEEN_SEARCHES)
    atexit.register(gc.freeze)
