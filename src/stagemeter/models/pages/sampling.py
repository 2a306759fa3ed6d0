"""Number of frames that a processor samples from a video."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError
from stagemeter.models.pages.settings import PageSettings

#: Most frames that a setting may ask for.
_MOST_FRAMES = 65_536


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """Defaults of a video processor's class.

    Attributes
    ----------
    samples : bool
        Whether it samples at all (``do_sample_frames``).
    fps : int or None
        Frames a second that it samples; None: a file must say so.
    whole_patches : bool
        Whether it rounds to whole patches, which span several frames.
    """

    samples: bool
    fps: int | None
    whole_patches: bool

    def frames(self, settings: PageSettings, frames: int, rate: float | None, span: int) -> int:
        """Return how many of a video's `frames` are sampled; `rate` is its frames a second, a patch spans `span`.

        Source: transformers, ``video_processing_qwen2_vl.py`` (with whole patches) and
        ``video_processing_qwen3_vl.py``, ``sample_frames``.
        """
        number = self._number(settings, frames, rate, span)
        if number < span:
            raise StagemeterError(
                f"video of {frames} frames: {number} are sampled, and a patch spans {span}. Give a longer video"
            )
        return number

    def _number(self, settings: PageSettings, frames: int, rate: float | None, span: int) -> int:
        if not settings.flag("do_sample_frames", published=self.samples):
            return frames
        removed = "fps" in settings.values and settings.values["fps"] is None
        has_fps = settings.has("fps") or (self.fps is not None and not removed)
        if settings.has("num_frames"):
            if has_fps:
                settings.refuse("num_frames", "transformers refuses it beside fps. Set one of them to null")
            number = settings.number("num_frames", published=1, most=_MOST_FRAMES)
            return self._evenly(round(number / span) * span, frames) if self.whole_patches else number
        least = settings.number("min_frames", published=4, most=_MOST_FRAMES)
        most = settings.number("max_frames", published=768, most=_MOST_FRAMES)
        if not has_fps:
            if self.whole_patches:
                raise StagemeterError(
                    f"{settings.source}: do_sample_frames is true without fps or num_frames, and transformers fails. "
                    "Give fps"
                )
            return min(max(frames, least), most)
        fps = settings.ratio("fps", published=self.fps or 1)
        if rate is None:
            raise StagemeterError(
                f"video of {frames} frames: it does not say how many a second, which fps needs. Give --video-frames"
            )
        if self.whole_patches:
            most = min(most, frames) // span * span
            taken = min(max(frames / rate * fps, least), most, frames)
            return self._evenly(math.floor(taken / span) * span, frames)
        return min(max(int(frames / rate * fps), least), most, frames)

    def _evenly(self, number: int, frames: int) -> int:
        """Return how many indices a step between frames gives, by floats; refuse more than there are frames."""
        if number > frames:
            raise StagemeterError(f"video of {frames} frames: num_frames asks for {number}. Give a longer video")
        return math.ceil(frames / (frames / number)) if number else 0
