"""The largest page, and the highest limits, that fit into a number of image tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.fit import fit_page, sizes_of, sizes_of_pdf
from stagemeter.analysis.pages import page_views
from stagemeter.core.errors import StagemeterError
from stagemeter.core.pdf import PdfPage
from stagemeter.models.lookup import describe_model

MODELS = [
    "deepseek-ocr",
    "qwen2.5-vl-7b",
    "internvl3-1b",
    "gemma-4-e2b",
    "mistral-small-3.1-24b",
    "llava-1.6-mistral-7b",
    "llama-4-scout",
    "minicpm-ocr-default",
    "paddleocr-vl",
    "smolvlm-256m",
]


def tokens_of(model, width, height, **limits):
    config = AnalysisConfig(**limits)
    try:
        return page_views(config, model, width, height)[0].image_tokens
    except StagemeterError:
        return None


def scaled(side, step, start):
    return max(1, int(side * step / start + 0.5))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(st.integers(50, 400), st.integers(50, 400), st.integers(1, 1500), st.none() | st.integers(30, 200))
def test_it_fits_and_one_step_larger_does_not(name, width, height, most, dpi):
    model = describe_model(name)
    found = fit_page(AnalysisConfig(), model, sizes_of(width, height, dpi), most)
    whole = tokens_of(model, width, height)
    start = dpi or max(width, height)

    def at(step):
        return tokens_of(model, scaled(width, step, start), scaled(height, step, start))

    fits_whole = whole is not None and whole <= most
    if found.size is None:
        assert not fits_whole
        least = -(-start * 50 // min(width, height))
        assert all((tokens := at(step)) is None or tokens > most for step in range(least, start))
    else:
        step = found.dpi or max(found.size)
        assert found.size == (scaled(width, step, start), scaled(height, step, start))
        assert tokens_of(model, *found.size) == found.tokens <= most
        assert found.next_tokens == (None if step == 4 * start else at(step + 1))
        assert found.next_tokens is None or found.next_tokens > most
        assert (step >= start) == fits_whole
        # Nothing between the page and the answer contradicts it.
        between = range(start, min(step, start + 50)) if fits_whole else range(step + 1, start)
        assert all(((tokens := at(other)) is not None and tokens <= most) == fits_whole for other in between)
    if fits_whole:
        assert found.limits == {}
    for limit, value in found.limits.items():
        assert tokens_of(model, width, height, **{limit: value}) <= most
        above = tokens_of(model, width, height, **{limit: value + 1})
        assert above is None or above > most


@settings(max_examples=20, deadline=None)
@given(st.floats(40, 300, width=32), st.floats(40, 300, width=32), st.integers(1, 900), st.integers(72, 150))
def test_a_page_of_a_pdf_is_rendered_at_the_answer(width, height, most, dpi):
    model, page = describe_model("qwen2.5-vl-7b"), PdfPage("", width, height)
    found = fit_page(AnalysisConfig(), model, sizes_of_pdf(page, dpi), most)
    whole = tokens_of(model, *page.pixels(dpi))
    if found.size is None:
        assert whole > most
    else:
        assert found.size == page.pixels(found.dpi)
        assert tokens_of(model, *found.size) == found.tokens <= most
        assert (found.dpi >= dpi) == (whole <= most)
        if found.dpi < 4 * dpi:
            assert tokens_of(model, *page.pixels(found.dpi + 1)) == found.next_tokens > most


def test_by_hand():
    """Blocks of Qwen2.5-VL have 28 pixels: 1,059 are 38 blocks and 1,497 are 53, 1,498 are 53.5 or 54."""
    model = describe_model("qwen2.5-vl-7b")
    found = fit_page(AnalysisConfig(), model, sizes_of(1654, 2339), 2048)
    assert (found.size, found.tokens, found.next_tokens) == ((1059, 1497), 38 * 53, 38 * 54)
    assert found.limits == {"max_pixels": 1_616_623}
    # Seven times six tokens of a page that grows to four times its sides.
    found = fit_page(AnalysisConfig(max_pixels=42 * 784), model, sizes_of(700, 600), 42)
    assert (found.size, found.next_tokens) == ((2800, 2400), None)


def test_tiles_follow_the_shape_and_not_the_size():
    model = describe_model("internvl3-1b")
    found = fit_page(AnalysisConfig(), model, sizes_of(1654, 2339), 1000)
    assert found.size is None
    assert found.limits == {"max_tiles": 5}


def test_a_limit_of_the_request_is_lowered():
    model = describe_model("qwen2.5-vl-7b")
    least = AnalysisConfig(min_pixels=1_000_000)
    found = fit_page(least, model, sizes_of(1654, 2339), 100)
    assert (found.size, found.limits) == (None, {})


def test_a_limit_of_a_video():
    model = describe_model("qwen3-vl-8b")
    video = {"video_frames": 8}
    found = fit_page(AnalysisConfig(**video), model, sizes_of(1280, 720), 1000)
    assert found.tokens <= 1000 < found.next_tokens
    most = found.limits["max_pixels"]
    assert tokens_of(model, 1280, 720, **video, max_pixels=most) <= 1000
    assert tokens_of(model, 1280, 720, **video, max_pixels=most + 1) > 1000
