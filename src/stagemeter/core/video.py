"""Videos: frames, rate and size as the file says them, without decoding a frame."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path, require_file

#: Endings of files that hold a video.
_ENDINGS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
#: Formats of pictures whose further frames are those of a video, and not further pages.
_ANIMATED = frozenset({"AVIF", "GIF", "PNG", "WEBP"})


@dataclass(frozen=True, slots=True)
class Video:
    """A video: its number of frames, frames a second (None: unknown), and their size in pixels as stored."""

    frames: int
    rate: float | None
    width: int
    height: int


def is_video(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the ending of a video."""
    return Path(path).suffix.lower() in _ENDINGS


def read_video(path: str | os.PathLike[str]) -> Video:
    """Read what a video's container says of its first stream of pictures, or raise StagemeterError.

    Source: transformers, ``video_utils.py``, ``read_video_pyav``. A container that does not say its frames is read
    through, and its packets are counted.
    """
    source = outside_path(path, "video")
    require_file(source, "video")
    try:
        import av
    except ImportError:
        raise StagemeterError(
            f"{source}: is a video, which needs PyAV. `pip install av`, or give a size such as 1280x720 and "
            "--video-frames"
        ) from None
    try:
        with av.open(os.fspath(source)) as container:
            if not container.streams.video:
                raise StagemeterError(f"{source}: holds no stream of pictures. Give another video")
            stream = container.streams.video[0]
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            rate = float(stream.average_rate) if stream.average_rate else None
            width, height = stream.width, stream.height
    except (av.FFmpegError, OSError, ValueError) as error:
        raise StagemeterError(f"{source}: is damaged, or no video ({error}). Save or copy it again") from error
    if not (frames and width and height):
        raise StagemeterError(f"{source}: has {frames} frames of {width} x {height} pixels. Save or copy it again")
    return Video(frames, rate, width, height)


def read_animation(path: str | os.PathLike[str]) -> Video | None:
    """Return the video that an animated GIF, PNG, WebP or AVIF is; None for any other picture.

    The rate is the mean over its frames, whose durations the file gives.
    """
    from PIL import Image

    from stagemeter.core.picture import page_size, readable

    width, height = page_size(path)
    source = Path(path)
    with readable(source), Image.open(source) as picture:
        frames = int(getattr(picture, "n_frames", 1))
        if picture.format not in _ANIMATED or frames == 1:
            return None
        milliseconds = 0.0
        for frame in range(frames):
            picture.seek(frame)
            # WebP knows a frame's duration once it is decoded.
            picture.load()
            milliseconds += picture.info.get("duration", 0)
    return Video(frames, 1e3 * frames / milliseconds if milliseconds else None, width, height)
