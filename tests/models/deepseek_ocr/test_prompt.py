"""The layout of a page's prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.core.errors import StagemeterError
from stagemeter.models.families.deepseek_ocr.prompt import build_prompt
from stagemeter.models.families.deepseek_ocr.tiling import ViewPlan, plan_views

IMAGE = 128815


def test_gundam_prompt_has_913_positions() -> None:
    prompt = build_prompt(ViewPlan(1280, 1920, 1024, 640, (2, 3)), text_tokens=10)
    assert len(prompt.input_ids) == len(prompt.image_mask) == 913
    assert prompt.input_ids[0] == 0
    assert prompt.input_ids[1:904] == (IMAGE,) * 903
    assert set(prompt.input_ids[904:]) == {3}
    assert prompt.image_mask == (False,) + (True,) * 903 + (False,) * 9


def test_layout_of_a_small_prompt_with_own_ids() -> None:
    # One token per side of a view: [token, newline] and the separator, then two rows of [token, newline].
    plan = ViewPlan(64, 128, base_size=64, tile_size=64, grid=(1, 2))
    prompt = build_prompt(plan, 3, patch_size=16, downsample_ratio=4, image_token_id=9, bos_token_id=7, text_token_id=8)
    assert prompt.input_ids == (7, 9, 9, 9, 9, 9, 9, 9, 8, 8)
    assert prompt.image_mask == (False,) + (True,) * 7 + (False,) * 2


def test_bos_alone_is_a_text() -> None:
    prompt = build_prompt(ViewPlan(1, 1, 64, 64, (1, 1)), text_tokens=1)
    assert prompt.input_ids == (0, IMAGE, IMAGE, IMAGE)


@given(
    width=st.integers(1, 8000),
    height=st.integers(1, 8000),
    base_size=st.integers(64, 1536),
    tile_size=st.integers(64, 1024),
    crop=st.booleans(),
    text_tokens=st.integers(1, 50),
    patch_size=st.sampled_from([14, 16, 32]),
    downsample_ratio=st.sampled_from([1, 2, 4]),
)
def test_mask_marks_exactly_the_planned_image_tokens(
    width: int,
    height: int,
    base_size: int,
    tile_size: int,
    crop: bool,
    text_tokens: int,
    patch_size: int,
    downsample_ratio: int,
) -> None:
    plan = plan_views(width, height, base_size, tile_size, crop)
    prompt = build_prompt(plan, text_tokens, patch_size, downsample_ratio)
    tokens = plan.image_tokens(patch_size, downsample_ratio)
    assert sum(prompt.image_mask) == tokens
    assert prompt.input_ids.count(IMAGE) == tokens
    assert prompt.image_mask == tuple(token_id == IMAGE for token_id in prompt.input_ids)
    assert len(prompt.input_ids) == tokens + text_tokens


@pytest.mark.parametrize("text_tokens", [0, -3])
def test_a_text_without_bos_is_refused(text_tokens: int) -> None:
    with pytest.raises(StagemeterError, match=f"text_tokens .* got {text_tokens}"):
        build_prompt(ViewPlan(1, 1, 64, 64, (1, 1)), text_tokens)


@pytest.mark.parametrize("image_token_id", [0, 3])
def test_an_image_id_that_is_also_text_is_refused(image_token_id: int) -> None:
    with pytest.raises(StagemeterError, match=f"image_token_id {image_token_id} is also"):
        build_prompt(ViewPlan(1, 1, 64, 64, (1, 1)), 5, image_token_id=image_token_id)
