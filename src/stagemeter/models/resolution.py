"""The resolution that a request asks for, of families whose pages have resolution modes."""

from __future__ import annotations

from dataclasses import dataclass

#: Name of sizes that match no mode.
CUSTOM_MODE = "custom"


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a request wants its page to be cut into views. Families without modes ignore it.

    Attributes
    ----------
    mode : str
        Name of the mode, or `CUSTOM_MODE`.
    base_size, image_size : int
        Sides of the global view and of a tile in pixels.
    crop_mode : bool
        Whether a page larger than a tile is also cut into tiles.
    patch_size, downsample_ratio : int or None
        Pixels per patch and patches per token, both per side. A family refuses other values than its own; None: its
        own.
    """

    mode: str
    base_size: int
    image_size: int
    crop_mode: bool
    patch_size: int | None = None
    downsample_ratio: int | None = None
