"""The views that DeepSeek-OCR takes of a page, and their tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagemeter.core.errors import StagemeterError
from stagemeter.models.families.deepseek_ocr.page import global_view, pixel_tensor, tiles

RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)


def test_global_view_pads_with_the_authors_grey() -> None:
    view = global_view(Image.new("RGB", (100, 200), RED), 64)
    assert view.size == (64, 64)
    assert view.getpixel((0, 32)) == view.getpixel((63, 32)) == (127, 127, 127)
    assert view.getpixel((32, 0)) == view.getpixel((32, 63)) == RED


def test_global_view_can_be_stretched_instead() -> None:
    view = global_view(Image.new("RGB", (100, 200), RED), 64, stretch=True)
    assert view.getcolors() == [(64 * 64, RED)]


def test_a_page_too_thin_to_pad_is_refused() -> None:
    page = Image.new("RGB", (10_000, 1))
    with pytest.raises(StagemeterError, match="10000 x 1 pixels: padded to 1024 x 1024, it keeps less than a pixel"):
        global_view(page, 1024)
    assert global_view(page, 1024, stretch=True).size == (1024, 1024)


@settings(deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), side=st.integers(1, 64))
def test_every_page_is_padded_to_the_square_or_refused(width: int, height: int, side: int) -> None:
    page = Image.new("RGB", (width, height))
    try:
        assert global_view(page, side).size == (side, side)
    except StagemeterError:
        assert 2 * min(width, height) * side <= max(width, height)


def test_tiles_are_cut_row_by_row() -> None:
    page = Image.new("RGB", (6, 4))
    colours = [(10 * number, 0, 255) for number in range(6)]
    for number, colour in enumerate(colours):
        page.paste(colour, (number % 3 * 2, number // 3 * 2, number % 3 * 2 + 2, number // 3 * 2 + 2))
    cut = tiles(page, (3, 2), 2)
    assert [tile.getcolors() for tile in cut] == [[(4, colour)] for colour in colours]


def test_tiles_stretch_the_page_over_the_grid() -> None:
    page = Image.new("RGB", (100, 90), GREEN)
    assert [tile.size for tile in tiles(page, (2, 3), 32)] == [(32, 32)] * 6
    assert tiles(page, (1, 1), 32) == []


def test_pixel_tensor_is_channels_first_between_minus_one_and_one() -> None:
    view = Image.new("RGB", (4, 4), BLACK)
    view.putpixel((3, 1), (255, 51, 127))
    pixels = pixel_tensor([Image.new("RGB", (4, 4), WHITE), view], torch.float32)
    assert (tuple(pixels.shape), pixels.dtype, pixels.is_contiguous()) == ((2, 3, 4, 4), torch.float32, True)
    assert bool((pixels[0] == 1).all())
    assert pixels[1, :, 1, 3].tolist() == pytest.approx([1.0, -0.6, 127 / 127.5 - 1])
    assert pixels[1, :, 3, 1].tolist() == [-1.0, -1.0, -1.0]


def test_pixel_tensor_is_rounded_once_to_the_dtype() -> None:
    ramp = Image.linear_gradient("L").convert("RGB")
    exact = pixel_tensor([ramp], torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(pixel_tensor([ramp], dtype), exact.to(dtype))
