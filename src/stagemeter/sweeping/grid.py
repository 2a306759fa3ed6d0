"""The grid of a sweep: every page in every mode, with every combination of the other settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from stagemeter.core.workload import stable_hash
from stagemeter.hardware.roofline import Peak
from stagemeter.models.families import family_named
from stagemeter.models.family import Family
from stagemeter.models.page_views import PageViews, RequestPages

#: Axes of a grid, from the one that changes last to the one that changes with every row.
AXES = (
    *("pages", "devices", "dtypes", "batch_sizes"),
    *("cached_tokens", "chunk_tokens", "text_tokens", "new_tokens"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page in a mode: pixels, upright, or zeros for text alone; its views; and its name in a corpus.

    `more` equal pages follow it in the request, with `tags` around each. Pages with equal views cost the same.
    """

    width: int
    height: int
    views: PageViews
    name: str | None = None
    more: int = 0
    tags: int = 0

    @property
    def request(self) -> RequestPages:
        """Return the number of pages and their views, from which the cost of the request follows."""
        return RequestPages(1 + self.more, (0, 0), self.views, self.tags)


@dataclass(frozen=True)
class Grid:
    """All combinations of some settings, of one model.

    Attributes
    ----------
    family_name : str
        Family of the model. By name, since a family cannot be sent to every cluster.
    closed_form : mapping
        ``closed_form`` of a report of the model.
    pages : sequence of Page
        Pages, each in each mode.
    devices : sequence of mapping of str to Peak
        Peaks of each device by data type; without devices, rows have no bounds.
    cached_tokens, chunk_tokens : sequence of int
        As in a configuration; 0 for none, and for prompts as a whole.
    seq_len : int or None
        Length of the prompt; None: that of page and text.
    decode_context : int or str
        As in a configuration.
    limits : mapping
        Limits of pages that the request asks for, as in a configuration.
    notes : sequence of str
        Notes on the source of the pages.
    wide : frozenset of str
        Columns whose numbers may not fit into 64 bits.
    """

    model: str
    family_name: str
    architecture: Any
    closed_form: Mapping[str, Any]
    pages: Sequence[Page]
    batch_sizes: Sequence[int] = (1,)
    text_tokens: Sequence[int] = (10,)
    new_tokens: Sequence[int] = (512,)
    cached_tokens: Sequence[int] = (0,)
    chunk_tokens: Sequence[int] = (0,)
    dtypes: Sequence[str] = ("bfloat16",)
    devices: Sequence[Mapping[str, Peak]] = field(default=())
    seq_len: int | None = None
    decode_context: int | str = "auto"
    wide: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def family(self) -> Family[Any]:
        """The family of the model."""
        return family_named(self.family_name)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each of the `AXES`."""
        return tuple(max(1, len(getattr(self, axis))) for axis in AXES)

    @property
    def size(self) -> int:
        """Number of rows: each workload once for each device."""
        return math.prod(self.shape)

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits, equal for grids of the same table."""
        return stable_hash(
            {
                "family": self.family_name,
                "architecture": self.architecture.hash,
                "pages": [
                    [page.name, page.width, page.height, asdict(page.views), *([page.more] if page.more else [])]
                    for page in self.pages
                ],
                "devices": [{dtype: asdict(peak) for dtype, peak in device.items()} for device in self.devices],
                **{axis: list(getattr(self, axis)) for axis in AXES if axis not in ("pages", "devices")},
                "seq_len": self.seq_len,
                "decode_context": self.decode_context,
            }
        )
