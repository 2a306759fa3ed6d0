"""Pairs that a mask would show were it not for the order of tokens: the dense convention of attention.

A mask hides pairs for two reasons. Order hides later tokens, which the dense convention counts. A window,
a chunk, or another text of a packed batch hides pairs in any order, and those are no work of the model. The rows of a
mask tell the two apart where each query sees one stretch of keys:

- A *part* is a stretch of tokens that no visible pair leaves: a chunk, or a text of a packed batch.
- In a part, a query sees the last keys up to itself: all of them, or as many as the window spans.
- Of later keys it sees those alone that see it, too, such as the rest of a picture.

Each query of a part then counts with as many keys as one can have, ``min(length, window)``, and never with fewer than
the mask shows. Queries that see nothing and keys that none sees are padding, which counts as tokens. A window that
hides no pair counts as none. A mask that equals its transpose has no order, so it hides all that it hides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of tokens that no visible pair leaves.

    `rows` are its queries, `span` its tokens, `most` the most keys of one query up to itself. `shown` are its visible
    pairs. `windowed` is whether some query sees fewer keys than there are.
    """

    rows: int
    span: int
    most: int
    shown: int
    windowed: bool


class MaskRows:
    """The keys that each query of some masks sees, collected block by block; blocks come in order.

    `shift` is the key at the place of the first query. None: the last query is at the last key that it sees, or the
    first one at the first key.
    """

    def __init__(self, shift: int | None = 0) -> None:
        self._shift = shift
        self._numbers: list[torch.Tensor] = []
        self._firsts: list[torch.Tensor] = []
        self._in_one_stretch = True

    def add(self, shown: torch.Tensor) -> None:
        """Add some queries of all masks: true where they see a key, ``(masks, queries, keys)``."""
        self._keys = shown.shape[-1]
        self._numbers.append(shown.sum(-1))
        self._firsts.append(shown.to(torch.uint8).argmax(-1))
        stretches = (shown[..., 1:] & ~shown[..., :-1]).sum(-1) + shown[..., 0]
        self._in_one_stretch = self._in_one_stretch and int(stretches.max()) <= 1

    @property
    def shown(self) -> int:
        """The visible pairs."""
        return sum(int(number.sum()) for number in self._numbers)

    @property
    def unordered(self) -> int | None:
        """The pairs were it not for the order of tokens; None where the masks have another form."""
        numbers, firsts = torch.cat(self._numbers, dim=-1), torch.cat(self._firsts, dim=-1)
        if not self._in_one_stretch:
            return None
        parts: list[_Part] = []
        for number, first in zip(numbers, firsts, strict=True):
            found = self._parts(number, first)
            if found is None:
                return None
            parts += found
        windows = {part.most for part in parts if part.windowed}
        window = min(windows, default=self._keys)
        if windows and any(part.most > window for part in parts):
            return None
        return sum(max(part.rows * min(part.span, window), part.shown) for part in parts)

    def _parts(self, number: torch.Tensor, first: torch.Tensor) -> list[_Part] | None:
        """Return the parts of one mask; None where it has another form."""
        rows = len(number)
        if bool((number == number[0]).all()) and bool((first == first[0]).all()):
            # All queries see the same keys. Hidden ones are padding.
            return [_Part(rows, self._keys, self._keys, 0, windowed=False)]
        seeing = number.nonzero()[:, 0]
        begin, end = int(seeing[0]), int(seeing[-1]) + 1
        if len(seeing) < end - begin:
            return None
        if self._shift is not None:
            return self._placed(number, first, begin, end, self._shift)
        last = int(first[-1] + number[-1]) - rows
        found = self._placed(number, first, begin, end, last)
        return self._placed(number, first, begin, end, 0) if found is None else found

    def _placed(
        self, number: torch.Tensor, first: torch.Tensor, begin: int, end: int, shift: int
    ) -> list[_Part] | None:
        """Return the parts of one mask: its first query is at the key `shift`, those from `begin` to `end` see some."""
        rows = len(number)
        place = torch.arange(begin, end) + shift
        first, last = first[begin:end], (first + number)[begin:end] - 1
        if bool((first > place).any() | (first.diff() < 0).any() | (last.diff() < 0).any()):
            return None
        later = last > place
        seen = last[later] - shift - begin
        if bool((seen >= end - begin).any()) or bool((first[seen.clamp(max=end - begin - 1)] > place[later]).any()):
            return None
        cuts = ((last[:-1] < place[1:]) & (first[1:] >= place[1:])).nonzero()[:, 0] + 1
        edges = [0, *cuts.tolist(), end - begin]
        parts = []
        for start, stop in pairwise(edges):
            part = _part(place[start:stop], first[start:stop], last[start:stop])
            if part is None:
                return None
            parts.append(part)
        empty = [count for count in (begin, rows - end) if count]
        if len(parts) > 1:
            return [*parts, *(_Part(count, count, 0, 0, windowed=False) for count in empty)]
        (part,) = parts
        return [_Part(rows, self._keys, part.most, part.shown, part.windowed)]


def _part(place: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> _Part | None:
    most = int((place - first).max()) + 1
    begins = (place - most + 1).clamp(min=int(first[0]))
    # Behind the last key that anyone sees is padding.
    if bool((first != begins).any() | ((last < place) & (last != last[-1])).any()):
        return None
    span = int(place[-1] - first[0]) + 1
    return _Part(len(place), span, most, int((last - first + 1).sum()), windowed=bool((first > first[0]).any()))


def unordered_pairs(shown: torch.Tensor) -> int | None:
    """Return the pairs of a mask ``(..., queries, keys)`` were it not for the order of tokens; None for other forms."""
    *_, queries, keys = shown.shape
    if queries == 1:
        return shown.numel()
    if queries == keys and torch.equal(shown, shown.mT):
        return int(shown.count_nonzero())
    rows = MaskRows(0 if queries == keys else None)
    rows.add(shown.reshape(-1, queries, keys))
    return rows.unordered


def unordered_window(queries: int, keys: int, shown: int, left: int | None, right: int | None) -> int:
    """Return the pairs of a window were it not for the order, see `window_pairs`; `shown` are the visible ones."""
    if left is None:
        return queries * keys
    return queries * min(keys, left + 1) if right == 0 else shown


def row_blocks(queries: int, keys: int, masks: int, at_once: int) -> Iterator[range]:
    """Yield the queries of blocks of so many pairs at most, or of one query."""
    rows = max(1, at_once // max(1, masks * keys))
    return (range(start, min(queries, start + rows)) for start in range(0, queries, rows))
