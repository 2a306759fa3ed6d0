"""A workload as plain data: views, tokens, batch, data type, generated tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from stagemeter.core.setting import MODES, PAGES, Setting, table
from stagemeter.core.settings import RequestSettings

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: Mode of a workload without a page, and of one whose views the model's own processor decides.
TEXT, OWN = "text", "own"


@dataclass(frozen=True, kw_only=True)
class PageOfWorkload:
    """A page, and what it comes to. Sizes and numbers of views are 0 where the model reads text alone."""

    image_width: Annotated[
        int, Setting("Width of the page in pixels, upright; 0 for text alone.", least=0, models=PAGES, hashed=False)
    ]
    image_height: Annotated[
        int, Setting("Height of the page in pixels, upright; 0 for text alone.", least=0, models=PAGES, hashed=False)
    ]
    mode: Annotated[
        str,
        Setting(
            "Resolution mode; custom if the sizes match none, text if the model reads text alone, own if its processor "
            "decides the views.",
            models=MODES,
            hashed=False,
        ),
    ]
    base_size: Annotated[
        int,
        Setting("Side of the global view in pixels, the longer one if it is not square.", least=0, models=MODES),
    ]
    image_size: Annotated[
        int, Setting("Side of a tile in pixels; without tiles, that of the view.", least=0, models=MODES)
    ]
    global_views: Annotated[int, Setting("Views per page that show it as a whole.", least=0, models=PAGES)]
    local_views: Annotated[int, Setting("Views per page that show a tile of it.", least=0, models=PAGES)]
    tile_grid: Annotated[
        tuple[int, int], Setting("Columns and rows of tiles; 1 and 1 where the page is not tiled.", models=PAGES)
    ]
    image_tokens: Annotated[int, Setting("Tokens that the views of one page become.", least=0, models=PAGES)]
    view_size: Annotated[
        tuple[int, int] | None,
        Setting("Width and height of a view in pixels; null where it is a square of base_size.", models=PAGES),
    ] = None
    padded_tokens: Annotated[
        int | None,
        Setting(
            "Tokens that a page is padded to before the encoder; null for the model's published number.",
            least=1,
            models=PAGES,
            logged=False,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FurtherPages(PageOfWorkload):
    """Equal pages, one after another, behind the first page of a request."""

    times: Annotated[int, Setting("Number of these pages.", least=1)]
    tags: Annotated[
        int, Setting("Tokens that the prompt has around each of them, besides its image tokens.", least=0, hashed=False)
    ]


@dataclass(frozen=True, kw_only=True)
class Workload(PageOfWorkload, RequestSettings):
    """One request, or a batch of equal ones: what `RequestSettings` asks for, and what pages and prompt come to.

    The fields of a page are those of the first one.
    """

    prompt_tokens: Annotated[
        int,
        Setting("Length at which the language model is analyzed: image and text tokens, or seq_len.", least=1),
    ]
    decode_context: Annotated[
        int,
        Setting(
            "Tokens that the reported decode step attends to, itself included.", least=2, logged=False, hashed=False
        ),
    ]
    further_pages: Annotated[
        tuple[FurtherPages, ...] | None,
        Setting("Pages of the request behind the first one, in order; null for one page.", models=PAGES),
    ] = None

    @property
    def decode_steps(self) -> int:
        """Decode steps of the request: one fewer than new tokens, since the prefill yields the first."""
        return self.new_tokens - 1

    @property
    def past_tokens(self) -> int:
        """Tokens of the prompt that the cache holds before the prefill."""
        return 0 if self.cached_tokens is None else self.cached_tokens

    @property
    def computed_tokens(self) -> int:
        """Tokens of the prompt that the prefill computes."""
        return self.prompt_tokens - self.past_tokens

    @property
    def prefill_passes(self) -> list[Workload]:
        """The passes of the prefill: each computes tokens after those of the passes before."""
        if self.chunk_tokens is None:
            return [self]
        starts = range(self.past_tokens, self.prompt_tokens, self.chunk_tokens)
        ends = (min(start + self.chunk_tokens, self.prompt_tokens) for start in starts)
        return [
            replace(self, prompt_tokens=end, cached_tokens=start or None, chunk_tokens=None)
            for start, end in zip(starts, ends, strict=True)
        ]

    @property
    def all_image_tokens(self) -> int:
        """Tokens that the views of all pages become."""
        return self.image_tokens + sum(page.times * page.image_tokens for page in self.further_pages or ())

    @property
    def tags(self) -> int:
        """Tokens of the prompt around further pages; those around the first are text tokens."""
        return sum(page.times * page.tags for page in self.further_pages or ())

    @property
    def pages(self) -> int:
        """Pages of the request."""
        return (1 if self.global_views else 0) + sum(page.times for page in self.further_pages or ())

    @property
    def of_each_page(self) -> list[tuple[int, Workload]]:
        """The pages that an encoder runs on: how many equal ones follow one another, and the request of one of them.

        Those that the cache holds are left out.
        """
        if self.further_pages is None:
            return [] if self.page_cached else [(1, self)]
        alone = replace(self, further_pages=None, cached_tokens=None, chunk_tokens=None)
        names = [field.name for field in fields(PageOfWorkload)]
        groups = [
            (1, alone),
            *(
                (page.times, replace(alone, **{name: getattr(page, name) for name in names}))
                for page in self.further_pages
            ),
        ]
        cached, found = self.pages_cached, []
        for times, one in groups:
            if times > cached:
                found.append((times - cached, one))
            cached = max(0, cached - times)
        return found

    @property
    def _spans(self) -> list[tuple[int, int, int, int]]:
        """Return the places of pages in the prompt: number, start, tags and image tokens of equal ones."""
        found, start = [(1, 0, 0, self.image_tokens)], self.image_tokens
        for page in self.further_pages or ():
            found.append((page.times, start, page.tags, page.image_tokens))
            start += page.times * (page.tags + page.image_tokens)
        return found

    def end_of_page(self, number: int) -> int:
        """Return the tokens of the prompt up to the end of a page, counted from 1."""
        end = 0
        for times, start, tags, tokens in self._spans:
            end = start + min(times, number) * (tags + tokens)
            number -= times
            if number <= 0:
                break
        return end

    @property
    def cuts_page(self) -> bool:
        """Whether the cache holds a part of a page."""
        if self.cached_tokens is None or self.global_views < 1 or self.pages_cached == self.pages:
            return False
        return any(
            start < self.past_tokens < start + times * (tags + tokens)
            and (self.past_tokens - start) % (tags + tokens) > tags
            for times, start, tags, tokens in self._spans
        )

    @property
    def pages_cached(self) -> int:
        """Pages whose tokens are all in the cache, so that no encoder runs on them.

        Pages begin the prompt. Requests in arrays must have the same answer.
        """
        if self.cached_tokens is None or self.global_views < 1:
            return 0
        cached: Any = self.cached_tokens
        fewest, most = (cached.min(), cached.max()) if hasattr(cached, "min") else (cached, cached)
        held = {self._pages_within(int(tokens)) for tokens in (fewest, most)}
        if len(held) > 1:
            raise ValueError("cached_tokens: some hold the page and some do not. Evaluate the two apart")
        return held.pop()

    def _pages_within(self, tokens: int) -> int:
        """Return the pages that the first tokens of a prompt hold whole."""
        return sum(
            max(0, min(times, (tokens - start) // max(1, tags + image))) for times, start, tags, image in self._spans
        )

    @property
    def page_cached(self) -> bool:
        """Whether the cache holds all tokens of all pages, so that no encoder runs."""
        return 0 < self.pages == self.pages_cached

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        plain: dict[str, Any] = _with_lists(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Workload:
        """Build a workload from the result of `to_dict`."""
        # Older documents lack further pages.
        further = values.get("further_pages")
        pages = None if further is None else tuple(FurtherPages(**_page(page)) for page in further)
        return cls(**{**_page(values), "further_pages": pages})

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """Build a workload from JSON, or raise a ValueError that names the first wrong field."""
        from pydantic import ValidationError

        try:
            workload = _validator().validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))
            raise ValueError(f"{field}: {fault['msg']}" if field else fault["msg"]) from None
        given = json.loads(text)
        for name, row in table(RequestSettings).items():
            # An older request did not ask for a setting's default.
            if row.default is not None and name not in given:
                raise ValueError(f"{name}: missing")
        if workload.mode != TEXT and workload.base_size < 1:
            raise ValueError(f"base_size: {workload.base_size} is less than 1")
        return workload

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits, equal for equal work, by which a profile finds its counts."""
        return stable_hash(self.hashed_fields())

    def hashed_fields(self) -> dict[str, Any]:
        """Return the fields that make up the work.

        Page size, mode, video frames and decode context are left out: two pages that become the same views and tokens
        are the same work. A field without a value is left out, so a new field leaves older hashes as they were.
        """
        found = _hashed(self.to_dict(), Workload)
        if self.further_pages is not None:
            found["further_pages"] = [_hashed(page, FurtherPages) for page in found["further_pages"]]
        return found


def _hashed(values: Mapping[str, Any], owner: type) -> dict[str, Any]:
    rows = table(owner)
    return {name: value for name, value in values.items() if rows[name].setting.hashed and value is not None}


def _with_lists(values: Any) -> Any:
    """Turn tuples into lists, so that JSON does not change a workload."""
    if isinstance(values, dict):
        return {name: _with_lists(value) for name, value in values.items()}
    return [_with_lists(value) for value in values] if isinstance(values, tuple) else values


def _page(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a page with tuples where JSON has lists. Older documents lack the size of a view."""
    size = values.get("view_size")
    view_size = None if size is None else (size[0], size[1])
    return {**values, "tile_grid": tuple(values["tile_grid"]), "view_size": view_size}


def decode_context_of(setting: int | str, prompt_tokens: int, new_tokens: int, max_positions: int) -> int:
    """Return the tokens that the reported decode step attends to, itself included. Tokens may be arrays.

    `setting` is a number, ``auto`` (the middle of the generation, at least 2) or ``max`` (`max_positions`).
    """
    if setting == "auto":
        middle = prompt_tokens + new_tokens // 2
        # A step attends to itself and to earlier tokens. Arithmetic in place of max(), for arrays.
        return middle + (2 - middle) * (middle < 2)
    fixed = max_positions if setting == "max" else int(setting)
    return fixed + 0 * prompt_tokens


def stable_hash(values: Mapping[str, Any]) -> str:
    """Hash plain data, equally on every machine and for every order of keys: twelve hexadecimal digits of SHA-256."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@cache
def _validator() -> TypeAdapter[Workload]:
    """Return the validator, which takes longer to build than to use."""
    from pydantic import TypeAdapter

    return TypeAdapter(Workload)
