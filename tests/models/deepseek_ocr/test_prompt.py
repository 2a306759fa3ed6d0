"""The layout of a page's prompt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stagemeter.models.families.deepseek_ocr.prompt import build_prompt

IMAGE = 128815


def test_gundam_prompt_has_913_positions() -> None:
    prompt = build_prompt(image_tokens=903, text_tokens=10)
    assert len(prompt.input_ids) == len(prompt.image_mask) == 913
    assert prompt.input_ids[0] == 0
    assert prompt.input_ids[1:904] == (IMAGE,) * 903
    assert set(prompt.input_ids[904:]) == {3}
    assert prompt.image_mask == (False,) + (True,) * 903 + (False,) * 9


@given(image_tokens=st.integers(1, 2000), text_tokens=st.integers(1, 50))
def test_mask_marks_exactly_the_image_tokens(image_tokens: int, text_tokens: int) -> None:
    prompt = build_prompt(image_tokens, text_tokens)
    assert prompt.image_mask == tuple(token_id == IMAGE for token_id in prompt.input_ids)
    assert sum(prompt.image_mask) == image_tokens
    assert len(prompt.input_ids) == image_tokens + text_tokens
    assert prompt.input_ids[0] == 0
