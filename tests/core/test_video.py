"""Videos: frames, rate and size of their files."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from stagemeter.core.errors import StagemeterError
from stagemeter.core.picture import load_page, page_size
from stagemeter.core.video import Video, is_video, read_animation, read_video


@pytest.fixture
def clip(tmp_path):
    """Write a video of some frames, 96 x 64 pixels, in a container by the ending of its name."""
    av = pytest.importorskip("av")

    def write(name, frames, rate=25):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")
            for _ in range(frames):
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        return tmp_path / name

    return write


@pytest.mark.parametrize(("name", "rate"), [("clip.mp4", 25), ("clip.MOV", 30), ("clip.avi", 12), ("clip.mkv", 25)])
def test_a_container_says_frames_and_rate(clip, name, rate):
    """MP4 says its frames, and Matroska's are counted."""
    path = clip(name, 30, rate)
    assert is_video(path)
    assert read_video(path) == Video(30, rate, 96, 64)


def test_a_cut_video_is_refused(clip):
    path = clip("clip.mp4", 30)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StagemeterError, match=r"clip\.mp4: is damaged, or no video \(.*Save or copy it again"):
        read_video(path)


def test_a_file_without_pictures_is_refused(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(StagemeterError, match=r"sound\.mkv: holds no stream of pictures\. Give another video"):
        read_video(tmp_path / "sound.mkv")


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"any")
    message = "clip.mp4: is a video, which needs PyAV. `pip install av`, or give a size such as 1280x720"
    with pytest.raises(StagemeterError, match=re.escape(message)):
        read_video(tmp_path / "clip.mp4")


def test_a_video_is_no_page(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"any")
    for read in (page_size, load_page):
        with pytest.raises(StagemeterError, match=r"clip\.mp4: is a video.*give --video-frames and --page-size"):
            read(tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_frames_of_an_animation_have_a_mean_rate(tmp_path, name):
    frames = [Image.effect_noise((40, 30), 10 * number + 10).convert("RGB") for number in range(5)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=[100, 100, 100, 100, 600])
    assert read_animation(tmp_path / name) == Video(5, 5, 40, 30)
    frames[0].save(tmp_path / name)
    assert read_animation(tmp_path / name) is None


def test_pages_of_a_picture_are_no_video(tmp_path):
    frames = [Image.new("L", (40, 30))] * 3
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    assert read_animation(tmp_path / "pages.tiff") is None
    frames = [Image.new("RGB", (40, 30), (level, 0, 0)) for level in (0, 99)]
    frames[0].save(tmp_path / "still.gif", save_all=True, append_images=frames[1:], duration=0)
    assert read_animation(tmp_path / "still.gif") == Video(2, None, 40, 30)
