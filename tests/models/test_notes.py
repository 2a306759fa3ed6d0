"""Notes of families: each is said where it holds, and only there."""

import pytest

from stagemeter import AnalysisConfig, describe_model, estimate_model

VIDEO = {"video_frames": 8, "image_w": 640, "image_h": 360}


@pytest.mark.parametrize(
    ("words", "model", "settings", "said"),
    [
        ("V3.2 scores every earlier token", "deepseek-v3.2", {}, True),
        ("V3.2 scores every earlier token", "deepseek-v3", {}, False),
        ("the time before each two frames", "qwen3-vl-2b", VIDEO, True),
        ("the time before each two frames", "qwen3-vl-2b", {}, False),
        ("a single page counts twice", "qwen3-vl-2b", {}, True),
        ("a single page counts twice", "qwen3-vl-2b", VIDEO, False),
        ("an odd last frame counts twice", "qwen3-vl-2b", VIDEO, False),
        ("an odd last frame counts twice", "qwen3-vl-2b", VIDEO | {"video_frames": 7}, True),
        ("through the encoder as one sequence", "mistral-small-3.1-24b", {}, False),
        ("through the encoder as one sequence", "mistral-small-3.1-24b", {"batch_size": 2}, True),
        ("layers that share the keys and values", "gemma-4-e2b", {}, True),
    ],
)
def test_a_note_is_said_where_it_holds(words, model, settings, said):
    report = estimate_model(describe_model(model), AnalysisConfig(**settings))
    assert any(words in note for note in report["notes"]) is said
