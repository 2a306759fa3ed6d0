"""Processors of Qwen-VL and GLM-V, which resize pages and videos to whole blocks of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.pixel_limits import PixelLimits, read_pixel_limits, resized_between
from stagemeter.models.pages.sampling import FrameSampling
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings

#: Sizes and limits that transformers' ``Qwen2VLImageProcessor`` gives a file without them.
QWEN_SIZES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
_QWEN_PIXELS = 56 * 56, 28 * 28 * 1280


@dataclass(frozen=True, slots=True)
class Patches:
    """The rule that cuts a page to patches, squares of `size` pixels a side.

    A patch spans a number of frames; a single page is repeated. `merge_size` patches per side become one token.
    """

    size: int
    frames: int
    merge_size: int

    @property
    def block(self) -> int:
        """Side of a token in pixels."""
        return self.size * self.merge_size

    def require(self, settings: PageSettings, defaults: Mapping[str, int]) -> None:
        """Refuse processor settings that contradict the encoder; `defaults` are those of transformers' class."""
        sizes = {"patch_size": self.size, "temporal_patch_size": self.frames, "merge_size": self.merge_size}
        for key, needed in sizes.items():
            settings.require(key, needed=needed, default=defaults[key])

    def views(self, number: int, size: tuple[int, int]) -> PageViews:
        """Return a number of views of a width and a height in pixels."""
        width, height = size
        return PageViews(number, 0, width, height, (1, 1), number * (width // self.block) * (height // self.block))

    def resized_together(self, frames: int, width: int, height: int, limits: PixelLimits) -> tuple[int, int]:
        """Return the width and height of frames under limits of pixels for all frames together.

        Source: transformers, ``video_processing_qwen3_vl.py``, ``smart_resize``.
        """
        if limits.resizes and min(width, height) < self.block:
            scale = max(self.block / width, self.block / height)
            width, height = int(width * scale), int(height * scale)
        span = self.frames if frames > 1 else 1
        return resized_between(limits, self.block, width, height, frames, span)


@dataclass(frozen=True, slots=True)
class VideoProcessor:
    """A video processor's rule for the size of frames.

    Attributes
    ----------
    pixels, patch_size, tokens
        Defaults of transformers' class: limits, side of a patch in pixels, and ``max_video_tokens``.
    together : bool
        Whether the limits hold for all frames together, or for each.
    sampling : FrameSampling
        Which frames of a video it takes.
    published : tuple of int or None
        Limits without a file; None: those of pages.
    """

    pixels: tuple[int, int]
    patch_size: int
    tokens: int
    together: bool
    sampling: FrameSampling
    published: tuple[int, int] | None = None

    def limits(self, patches: Patches, settings: PageSettings, of_pages: PixelLimits, frames: int) -> PixelLimits:
        """Read the limits of pixels for the frames of a video.

        Source: transformers, ``video_processing_qwen2_vl.py`` and ``video_processing_qwen3_vl.py``, ``resize``.
        """
        patches.require(settings, {**QWEN_SIZES, "patch_size": self.patch_size})
        published = self.published or (of_pages.least, of_pages.most)
        limits = read_pixel_limits(settings, published, self.pixels, top_level=not self.together)
        if not settings.flag("cap_pixels_per_frame", published=False):
            return limits
        tokens = settings.number("max_video_tokens", published=self.tokens, most=2**31)
        least = int(limits.least * 1.05)
        if self.together:
            most = max(min(tokens * patches.block**2, limits.most // frames), least) * frames
        else:
            budget = int(tokens * patches.block**2 * 0.9)
            most = max(min(limits.most, budget * patches.frames // frames), least)
        return PixelLimits(limits.least, most, limits.resizes)


def page_and_video_rules(
    settings: ProcessorSettings, patches: Patches, pixels: tuple[int, int], videos: VideoProcessor
) -> PageRules:
    """Return the rules of Qwen-VL's processors; `pixels` are the limits of a page without a file.

    A view of a video spans as many frames as a patch; the last frame is repeated to fill the last view. Source:
    transformers, ``video_processing_qwen2_vl.py`` and ``video_processing_qwen3_vl.py``, ``patchify``.
    """
    patches.require(settings.image, QWEN_SIZES)
    limits = read_pixel_limits(settings.image, pixels, _QWEN_PIXELS)

    def page(width: int, height: int) -> PageViews:
        return patches.views(1, resized_between(limits, patches.block, width, height))

    def video(frames: int, width: int, height: int) -> PageViews:
        bounds = videos.limits(patches, settings.video, limits, frames)
        if videos.together:
            size = patches.resized_together(frames, width, height, bounds)
        else:
            size = resized_between(bounds, patches.block, width, height)
        return patches.views(-(-frames // patches.frames), size)

    def frames(number: int, rate: float | None) -> int:
        return videos.sampling.frames(settings.video, number, rate, patches.frames)

    return PageRules(page, video, frames=frames)
