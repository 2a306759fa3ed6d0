"""The resolution of a request, for families whose pages have resolution modes."""

from __future__ import annotations

from dataclasses import dataclass

#: Mode of sizes that match no other mode.
CUSTOM_MODE = "custom"


@dataclass(frozen=True, slots=True)
class Resolution:
    """A request's choice of the views of a page. Families without modes ignore it.

    `mode` may be `CUSTOM_MODE`. `base_size` and `image_size` are sides of the global view and of a tile in pixels. With
    `crop_mode`, a page larger than a tile is also cut into tiles. `patch_size` is pixels per patch, `downsample_ratio`
    patches per token, both per side; None: the family's own, and it refuses other values.
    """

    mode: str
    base_size: int
    image_size: int
    crop_mode: bool
    patch_size: int | None = None
    downsample_ratio: int | None = None
