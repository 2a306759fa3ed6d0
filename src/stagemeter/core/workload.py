"""What is asked of the model: views, tokens, batch, data type, generated tokens. Plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: Fields that say where the work came from or at which point it is looked at, but do not change the work itself.
_NOT_HASHED = frozenset({"image_width", "image_height", "mode", "decode_context", "video_frames"})

#: Mode of a workload without a page, and of one whose views the model's own processor decides.
TEXT, OWN = "text", "own"


@dataclass(frozen=True, slots=True)
class Workload:
    """One request, or a batch of equal ones.

    Attributes
    ----------
    image_width, image_height : int
        Size of the page in pixels, upright; 0 where the model reads text alone, as are the sizes and numbers of views.
    mode : str
        Name of the resolution mode, ``custom`` if the sizes match none, `TEXT` where the model reads text
        alone, `OWN` where its own processor decides the views.
    base_size : int
        Side of the global view in pixels; its longer side where it is no square.
    image_size : int
        Side of a local tile in pixels.
    global_views, local_views : int
        Views per page: the page as a whole, and its tiles.
    tile_grid : tuple of int
        Columns and rows of tiles; ``(1, 1)`` where the page is not tiled.
    image_tokens : int
        Tokens that the views of one page become.
    text_tokens : int
        The other tokens of the prompt, the one that begins the sequence included.
    prompt_tokens : int
        Length at which the language model is analyzed. Image plus text tokens unless set otherwise.
    new_tokens : int
        Tokens generated. The prefill yields the first, so there are ``new_tokens - 1`` decode steps.
    batch_size : int
        Pages processed at once.
    dtype : str
        Data type of weights and activations.
    decode_context : int
        Tokens that the reported decode step attends to, itself included.
    view_size : tuple of int or None
        Width and height of a view in pixels where it is no square of `base_size`.
    kv_cache_dtype : str or None
        Data type of the key-value cache where it is another one than `dtype`.
    video_frames : int or None
        Frames of a video in place of a page, each of the page's size; None for a page. Its views are groups of them.
    padded_tokens : int or None
        Tokens that a page is padded to before the encoder, where that is not the published number of the model.
    """

    image_width: int
    image_height: int
    mode: str
    base_size: int
    image_size: int
    global_views: int
    local_views: int
    tile_grid: tuple[int, int]
    image_tokens: int
    text_tokens: int
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    dtype: str
    decode_context: int
    view_size: tuple[int, int] | None = None
    kv_cache_dtype: str | None = None
    video_frames: int | None = None
    padded_tokens: int | None = None

    @property
    def decode_steps(self) -> int:
        """Decode steps of the request: one less than tokens, since the prefill yields the first."""
        return self.new_tokens - 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON knows them."""
        view_size = None if self.view_size is None else list(self.view_size)
        return {**asdict(self), "tile_grid": list(self.tile_grid), "view_size": view_size}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Workload:
        """Build a workload from what `to_dict` returned."""
        columns, rows = values["tile_grid"]
        # Documents from before views could be other than square do not say.
        size = values.get("view_size")
        view_size = None if size is None else (size[0], size[1])
        return cls(**{**values, "tile_grid": (columns, rows), "view_size": view_size})

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """Build a workload from what `to_dict` returned as JSON, wherever it comes from.

        Raises
        ------
        ValueError
            If it is none; the message names the first field that is wrong.
        """
        from pydantic import ValidationError

        try:
            workload = _validator().validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))
            raise ValueError(f"{field}: {fault['msg']}" if field else fault["msg"]) from None
        sizes = ("prompt_tokens", "new_tokens", "batch_size", *(("base_size",) if workload.mode != TEXT else ()))
        for name in sizes:
            if getattr(workload, name) < 1:
                raise ValueError(f"{name}: {getattr(workload, name)} is less than 1")
        return workload

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal work.

        The size of the page, the frames of a video, the name of the mode and the context that is looked at are left
        out: two pages that become the same views and tokens are the same work. A profile is paired with its counts by
        this.
        """
        return stable_hash(self.hashed_fields())

    def hashed_fields(self) -> dict[str, Any]:
        """The fields that say what the work is; two workloads are the same work if these are equal."""
        fields = {key: value for key, value in self.to_dict().items() if key not in _NOT_HASHED}
        # Fields that came later leave the hashes of before as they were.
        for name in ("view_size", "kv_cache_dtype", "padded_tokens"):
            if fields[name] is None:
                del fields[name]
        return fields


def stable_hash(values: Mapping[str, Any]) -> str:
    """Hash plain data, the same on every machine and in every run.

    Parameters
    ----------
    values : mapping
        Anything that JSON can hold; the order of keys does not matter.

    Returns
    -------
    str
        The first twelve hexadecimal digits of a SHA-256 digest.
    """
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@cache
def _validator() -> TypeAdapter[Workload]:
    """Built once: that takes longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(Workload)
