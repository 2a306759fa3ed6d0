"""Requests of a log beside their pages: what is wrong with each, and which of them are counted together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.request_logs.check import Requests
from stagemeter.analysis.request_pages import Layout, LoggedPages

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Which pictures of a request came before, none where no picture did.
Again = tuple[bool, ...]


@dataclass(frozen=True)
class Batch:
    """Some requests of a log, and the pages that their pictures become.

    `again` are places in `patterns` of pictures that came before.
    """

    pages: LoggedPages
    requests: Requests
    again: NDArray[Any]
    patterns: list[Again]

    @cached_property
    def _found(self) -> list[Layout | str]:
        return [self.pages.layout(sizes) for sizes in self.requests.sizes]

    @cached_property
    def layouts(self) -> list[Layout]:
        """The pages of each entry of ``requests.sizes``; none where the model cannot have them."""
        return [() if isinstance(found, str) else found for found in self._found]

    @cached_property
    def image_tokens(self) -> NDArray[Any]:
        """Image tokens of each request."""
        return self._of_layouts(self.pages.image_tokens)

    def where(self, rows: NDArray[Any]) -> Batch:
        """Return some of the requests."""
        return replace(self, requests=self.requests.where(rows), again=self.again[rows])

    def _of_layouts(self, value: Callable[[Layout], int]) -> NDArray[Any]:
        import numpy as np

        values = np.asarray([value(layout) for layout in self.layouts], np.int64)
        found: NDArray[Any] = values[self.requests.pictures]
        return found

    def faults(self) -> dict[int, str]:
        """Return the requests that the model cannot have, each with the reason."""
        import numpy as np

        requests, model = self.requests, self.pages.model
        refused = np.asarray([isinstance(found, str) for found in self._found], bool)[requests.pictures]
        reasons = {row: str(self._found[requests.pictures[row]]) for row in np.flatnonzero(refused).tolist()}
        least = self._of_layouts(lambda layout: self.pages.prompt(layout, 1))
        short = (requests.prompt < least) & ~refused
        for row in np.flatnonzero(short).tolist():
            pages, taken = self.layouts[requests.pictures[row]], int(self.image_tokens[row])
            what = "the page takes" if len(pages) == 1 else f"the {len(pages):,} pages take"
            size = f"{what} {taken} tokens" if taken else f"{model.name} takes {least[row]} or more"
            reasons[row] = f"prompt_tokens are too few: {size}"
        for number, rows, begins, ends in self._places():
            cached = requests.cached[rows]
            for row in rows[(begins < cached) & (cached < ends)].tolist():
                pages = self.layouts[requests.pictures[row]]
                start, end = self.pages.places(pages)[number]
                part = f"the page, which begins the prompt with {end} tokens"
                if len(pages) > 1:
                    part = f"page {number + 1} of {len(pages)}, which is tokens {start + 1:,} to {end:,} of the prompt"
                reasons.setdefault(row, f"cached_tokens are a part of {part}")
        return reasons

    def _places(self) -> Iterator[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Yield the number of a page, the requests that have so many, and where its tokens begin and end in them."""
        import numpy as np

        places = [self.pages.places(layout) for layout in self.layouts]
        counts = np.asarray([len(one) for one in places], np.int64)
        for number in range(int(counts.max(initial=0))):
            edges = np.asarray([one[number] if len(one) > number else (0, 0) for one in places], np.int64)
            rows = np.flatnonzero((counts > number)[self.requests.pictures] & (self.requests.cached > 0))
            yield number, rows, *edges[self.requests.pictures[rows]].T

    @cached_property
    def held(self) -> NDArray[Any]:
        """Pages of each request that the cache holds."""
        import numpy as np

        held = np.zeros(len(self.requests.line), np.int64)
        for _, rows, _, ends in self._places():
            held[rows] += self.requests.cached[rows] >= ends
        return held

    def combinations(self) -> tuple[NDArray[Any], list[tuple[tuple[Layout, int, Again], int]]]:
        """Return combinations of pages, how many the cache holds, and which came before, each with its requests.

        Before them are the places of the requests among them.
        """
        import numpy as np

        rows, patterns = int(self.held.max(initial=0)) + 1, len(self.patterns)
        keys = (self.requests.pictures * rows + self.held) * patterns + self.again
        found, which, numbers = np.unique(keys, return_inverse=True, return_counts=True)
        return which, [
            ((self.layouts[key // patterns // rows], key // patterns % rows, self.patterns[key % patterns]), number)
            for key, number in zip(found.tolist(), numbers.tolist(), strict=True)
        ]

    def alike(self) -> Iterator[tuple[Layout, NDArray[Any]]]:
        """Yield groups of requests whose pages the language model sees alike, each with such pages."""
        import numpy as np

        as_text = self._of_layouts(self.pages.as_text) > 0
        if as_text.any():
            yield (), np.flatnonzero(as_text)
        rows = np.flatnonzero(~as_text)
        keys = self.requests.pictures[rows] * (int(self.held.max(initial=0)) + 1) + self.held[rows]
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        for group in np.split(rows[order], starts[1:]) if len(rows) else ():
            yield self.layouts[self.requests.pictures[group[0]]], group
