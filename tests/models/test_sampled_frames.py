"""Frames of videos are sampled as transformers' video processors do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processor_functions import method_of
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from stagemeter.core.errors import StagemeterError
from stagemeter.models.lookup import describe_model
from stagemeter.models.pages.processor_files import ProcessorFiles
from stagemeter.models.pages.settings import ProcessorSettings

FRAMES, RATES = st.integers(1, 100_000), st.floats(0.5, 240)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "fps": st.sampled_from([0.5, 1, 2, 3.7, 30]),
        "min_frames": st.integers(1, 40),
        "max_frames": st.integers(40, 900),
    },
)


def sampled(model, frames, rate, values):
    described = describe_model(model)
    files = ProcessorFiles(video=values, video_source="video_preprocessor_config.json") if values is not None else None
    return described.family.rules(described.architecture, ProcessorSettings(files)).frames(frames, rate)


@given(FRAMES, RATES, SETTINGS)
def test_qwen_3_vl_spreads_frames_evenly(frames, rate, values):
    processor = object.__new__(Qwen3VLVideoProcessor)
    processor.__dict__.update(values)
    expected = len(processor.sample_frames(VideoMetadata(frames, fps=rate)))
    for model in ("qwen3-vl-8b", "qwen3.5-27b"):
        if expected < 2:
            with pytest.raises(StagemeterError, match=r"a patch spans 2\. Give a longer video"):
                sampled(model, frames, rate, values or None)
        else:
            assert sampled(model, frames, rate, values or None) == expected


@given(FRAMES, RATES, SETTINGS, st.none() | st.integers(2, 64))
def test_qwen_2_vl_takes_whole_patches(frames, rate, values, number):
    class Processor:
        min_frames, max_frames, temporal_patch_size, fps, num_frames = 4, 768, 2, None, None

    asked = {"num_frames": number} if number else {"fps": 2, **values}
    processor = Processor()
    processor.__dict__.update(asked)
    sample = method_of("qwen2_vl", "video_processing", "Qwen2VLVideoProcessor", "sample_frames")
    try:
        expected = len(sample(processor, VideoMetadata(frames, fps=rate)))
    except (ValueError, ZeroDivisionError):
        expected = None
    for model in ("qwen2-vl-7b", "qwen2.5-vl-7b"):
        if expected is None:
            with pytest.raises(StagemeterError, match="Give a longer video"):
                sampled(model, frames, rate, {"do_sample_frames": True, **asked})
        else:
            assert sampled(model, frames, rate, {"do_sample_frames": True, **asked}) == expected
        if frames > 1:
            assert sampled(model, frames, rate, None) == frames


def test_settings_that_transformers_refuses():
    for model, values, message in [
        ("qwen3-vl-8b", {"num_frames": 16}, "num_frames is 16. Transformers refuses it beside fps"),
        ("qwen2-vl-7b", {"do_sample_frames": True}, "do_sample_frames is true without fps or num_frames"),
        ("qwen3-vl-8b", {"fps": 0}, "fps is 0. It must be a number above 0"),
    ]:
        with pytest.raises(StagemeterError, match=message):
            sampled(model, 300, 30.0, values)
    assert sampled("qwen3-vl-8b", 300, 30.0, {"num_frames": 16, "fps": None}) == 16
    assert sampled("qwen3-vl-8b", 300, None, {"fps": None}) == 300
    with pytest.raises(StagemeterError, match=r"does not say how many a second, which fps needs\. Give --video-frames"):
        sampled("qwen3-vl-8b", 300, None, None)
    # Ten seconds, two frames in each.
    assert sampled("qwen3-vl-8b", 300, 29.97, None) == 20
