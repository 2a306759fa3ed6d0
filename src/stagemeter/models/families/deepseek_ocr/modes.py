"""Resolution modes of DeepSeek-OCR's authors; imports no part of a model."""

from __future__ import annotations

from stagemeter.models.resolution import Resolution

#: Side of the global view, side of a tile, and whether there are tiles, by the name of the mode.
MODES: dict[str, tuple[int, int, bool]] = {
    "tiny": (512, 512, False),
    "small": (640, 640, False),
    "base": (1024, 1024, False),
    "large": (1280, 1280, False),
    "gundam": (1024, 640, True),
}
DEFAULT_MODE = "gundam"
#: The modes as a request asks for them.
RESOLUTIONS = {name: Resolution(name, *sizes) for name, sizes in MODES.items()}
