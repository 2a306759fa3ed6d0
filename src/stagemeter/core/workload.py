"""A workload as plain data: views, tokens, batch, data type, generated tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from stagemeter.core.setting import MODES, PAGES, Setting, table
from stagemeter.core.settings import RequestSettings

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: Mode of a workload without a page, and of one whose views the model's own processor decides.
TEXT, OWN = "text", "own"


@dataclass(frozen=True, kw_only=True)
class Workload(RequestSettings):
    """One request, or a batch of equal ones: what `RequestSettings` asks for, and what page and prompt come to.

    Sizes and numbers of views are 0 where the model reads text alone.
    """

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
    def page_cached(self) -> bool:
        """Whether the cache holds all tokens of the page, so that no encoder runs.

        The page begins the prompt. Requests in arrays must have the same answer.
        """
        if self.cached_tokens is None or self.global_views < 1:
            return False
        held: Any = self.image_tokens <= self.cached_tokens
        if not hasattr(held, "all"):
            return bool(held)
        if held.any() != held.all():
            raise ValueError("cached_tokens: some hold the page and some do not. Evaluate the two apart")
        return bool(held.all())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        view_size = None if self.view_size is None else list(self.view_size)
        return {**asdict(self), "tile_grid": list(self.tile_grid), "view_size": view_size}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Workload:
        """Build a workload from the result of `to_dict`."""
        columns, rows = values["tile_grid"]
        # Older documents lack it.
        size = values.get("view_size")
        view_size = None if size is None else (size[0], size[1])
        return cls(**{**values, "tile_grid": (columns, rows), "view_size": view_size})

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
        rows = table(Workload)
        return {
            name: value for name, value in self.to_dict().items() if rows[name].setting.hashed and value is not None
        }


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
