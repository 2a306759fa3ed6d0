"""Reading a page's picture, cutting it into views, and drawing the cut."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagemeter.core.errors import StagemeterError
from stagemeter.models.families.deepseek_ocr.page import (
    draw_grid,
    global_view,
    load_page,
    page_size,
    pixel_tensor,
    synthetic_page,
    tiles,
)
from stagemeter.models.families.deepseek_ocr.tiling import ViewPlan, plan_views

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION_TAG = 0x0112


def png(width: int, height: int) -> bytes:
    """A greyscale PNG with the given size in its header and no pixels behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_rgb_page_is_read_unchanged(tmp_path: Path) -> None:
    picture = Image.effect_noise((30, 20), 90).convert("RGB")
    picture.save(tmp_path / "page.png")
    page = load_page(tmp_path / "page.png")
    assert page.mode == "RGB"
    assert page.tobytes() == picture.tobytes()
    assert page_size(str(tmp_path / "page.png")) == (30, 20)


# Where the upright page's upper left corner is stored, as a fraction of the stored size, and whether sides are swapped.
@pytest.mark.parametrize(
    ("orientation", "corner", "swapped"),
    [
        (1, (0, 0), False),
        (2, (1, 0), False),
        (3, (1, 1), False),
        (4, (0, 1), False),
        (5, (0, 0), True),
        (6, (0, 1), True),
        (7, (1, 1), True),
        (8, (1, 0), True),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_orientation_is_applied_first(
    tmp_path: Path, orientation: int, corner: tuple[int, int], swapped: bool, suffix: str
) -> None:
    stored = Image.new("RGB", (48, 32), WHITE)
    # A block of 16 pixels survives JPEG's chroma subsampling.
    stored.paste(RED, (corner[0] * 32, corner[1] * 16, corner[0] * 32 + 16, corner[1] * 16 + 16))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    path = tmp_path / f"page.{suffix}"
    stored.save(path, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))

    page = load_page(path)

    assert page.size == page_size(path) == ((32, 48) if swapped else (48, 32))
    assert numpy.abs(numpy.array(page.getpixel((0, 0))) - RED).max() <= 4
    assert numpy.abs(numpy.array(page.getpixel((page.width - 1, page.height - 1))) - WHITE).max() <= 4


def test_only_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("page.gif", "page.png", "page.webp", "page.tif"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        page = load_page(tmp_path / name)
        assert (page.size, page.getpixel((4, 3))) == ((8, 6), RED), name


@pytest.mark.parametrize(("name", "byte_order"), [("page.png", "<"), ("page.tif", "<"), ("page.tif", ">")])
def test_16_bit_grey_is_scaled_rather_than_clipped(tmp_path: Path, name: str, byte_order: str) -> None:
    levels = numpy.array([[0, 128, 129, 257, 32768, 65407, 65535]], dtype=f"{byte_order}u2")
    Image.fromarray(levels).save(tmp_path / name)
    page = load_page(tmp_path / name)
    assert [page.getpixel((column, 0)) for column in range(7)] == [(v, v, v) for v in (0, 0, 1, 1, 128, 255, 255)]


def test_16_bit_levels_in_wider_pixels_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "page.pgm").write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 25700, 65535))
    Image.fromarray(numpy.array([[0, 25700, 65535]], dtype=numpy.int32)).save(tmp_path / "page.tif")
    for name in ("page.pgm", "page.tif"):
        page = load_page(tmp_path / name)
        assert [page.getpixel((column, 0)) for column in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3], name


def test_transparent_16_bit_level_is_white(tmp_path: Path) -> None:
    levels = numpy.array([[0, 1000]], dtype=numpy.uint16)
    Image.fromarray(levels).save(tmp_path / "page.png", transparency=1000)
    page = load_page(tmp_path / "page.png")
    assert [page.getpixel((column, 0)) for column in range(2)] == [BLACK, WHITE]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (3, 1))
    for column, alpha in enumerate((0, 51, 255)):
        picture.putpixel((column, 0), (0, 0, 0, alpha))
    picture.convert(mode).save(tmp_path / "page.png")
    page = load_page(tmp_path / "page.png")
    assert [page.getpixel((column, 0)) for column in range(3)] == [WHITE, (204, 204, 204), BLACK]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "clear.png", transparency=1)
    picture.save(tmp_path / "clear.gif", transparency=1)
    for name, second in (("opaque.png", BLUE), ("clear.png", WHITE), ("clear.gif", WHITE)):
        page = load_page(tmp_path / name)
        assert [page.getpixel((column, 0)) for column in range(2)] == [RED, second], name


@pytest.mark.parametrize("name", ["page.jpg", "page.tif"])
def test_cmyk_becomes_rgb(tmp_path: Path, name: str) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / name)
    page = load_page(tmp_path / name)
    assert numpy.abs(numpy.array(page.getpixel((8, 8))) - RED).max() <= 4


@pytest.mark.parametrize("name", ["page.png", "page.tif", "page.bmp"])
def test_one_bit_scan_becomes_rgb(tmp_path: Path, name: str) -> None:
    picture = Image.new("1", (9, 2), 0)
    picture.putpixel((8, 1), 1)
    picture.save(tmp_path / name)
    page = load_page(tmp_path / name)
    assert (page.getpixel((0, 0)), page.getpixel((8, 1))) == (BLACK, WHITE)


def test_missing_page(tmp_path: Path) -> None:
    with pytest.raises(StagemeterError, match=r"absent\.png: no such picture of a page"):
        load_page(tmp_path / "absent.png")


def test_directory_as_page(tmp_path: Path) -> None:
    with pytest.raises(StagemeterError, match="is a folder; give a picture of a page"):
        load_page(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_pipe_as_page_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StagemeterError, match="not a regular file"):
        load_page(tmp_path / "pipe")


@pytest.mark.parametrize("path", ["page\0.png", "x" * 5000])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(StagemeterError, match="cannot be used"):
        load_page(path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "page.png").touch()
    with pytest.raises(StagemeterError, match=r"is empty \(0 bytes\)"):
        load_page(tmp_path / "page.png")


@pytest.mark.parametrize("content", [b"Dear reader,\n", b"%PDF-1.7\n", bytes(1000)])
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(StagemeterError, match=r"page\.png is not a picture that Pillow can read"):
        load_page(tmp_path / "page.png")


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_picture_without_pixels(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "page.png").write_bytes(png(width, height))
    with pytest.raises(StagemeterError, match="it has no pixels"):
        load_page(tmp_path / "page.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp"])
def test_truncated_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"page.{suffix}"
    Image.effect_noise((200, 200), 90).convert("RGB").save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    # Some formats keep their header at the end or check the length at once: then nothing is recognised at all.
    with pytest.raises(StagemeterError, match=r"is damaged or incomplete|is not a picture that Pillow can read"):
        page_size(path)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    # Pillow only warns of the first and refuses the second.
    (tmp_path / "page.png").write_bytes(png(side, side))
    with pytest.raises(StagemeterError, match=rf"too large: .*{side * side} pixels.*Use a smaller scan"):
        load_page(tmp_path / "page.png")


def test_pillow_limit_is_honoured_as_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "page.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(StagemeterError, match="400 pixels"):
        load_page(tmp_path / "page.png")
    with pytest.raises(StagemeterError, match="20 x 20 has 400 pixels, more than the limit of 399"):
        synthetic_page(20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_page(tmp_path / "page.png").size == synthetic_page(20, 20).size


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), r"may not be read \(Permission denied\): change its permissions"),
        (MemoryError(), r"too large: Not enough memory for its pixels\. Use a smaller scan"),
        (RuntimeError("Failed to decode"), r"damaged or incomplete \(RuntimeError: Failed to decode\)"),
    ],
)
def test_what_the_system_and_decoders_raise_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "page.png")

    def refuse(*_: object) -> Image.Image:
        raise error

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(StagemeterError, match=message) as caught:
        load_page(tmp_path / "page.png")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (numpy.array([[0.0, 1.0]], dtype=numpy.float32), "floating-point pixels, whose white is unknown"),
        (numpy.array([[0, 70_000]], dtype=numpy.int32), "grey levels from 0 to 70000, beyond the 16-bit range"),
        (numpy.array([[-1, 5]], dtype=numpy.int32), "grey levels from -1 to 5, beyond the 16-bit range"),
    ],
)
def test_pixels_of_unknown_white_are_refused(tmp_path: Path, pixels: numpy.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "page.tif")
    with pytest.raises(StagemeterError, match=message):
        load_page(tmp_path / "page.tif")


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_damaged_byte_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "page.png"
    Image.radial_gradient("L").resize((40, 30)).save(path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    with suppress(StagemeterError):
        assert load_page(path).mode == "RGB"


def test_synthetic_page_is_mid_grey() -> None:
    page = synthetic_page(5, 3)
    assert (page.mode, page.size, page.getcolors()) == ("RGB", (5, 3), [(15, (128, 128, 128))])
    with pytest.raises(StagemeterError, match=r"page height .* got 0"):
        synthetic_page(5, 0)


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
    with pytest.raises(StagemeterError, match="10000 x 1 is too thin to be padded to 1024 x 1024"):
        global_view(page, 1024)
    assert global_view(page, 1024, stretch=True).size == (1024, 1024)
    with pytest.raises(StagemeterError, match="view side"):
        global_view(page, 0)


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
    with pytest.raises(StagemeterError, match="grid columns"):
        tiles(page, (0, 3), 32)
    with pytest.raises(StagemeterError, match="tile_size"):
        tiles(page, (2, 3), 0)


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


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "no views"),
        ([Image.new("L", (4, 4))], "view 0 is L 4 x 4, expected RGB 4 x 4"),
        ([Image.new("RGB", (4, 5))], "view 0 is RGB 4 x 5"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 5))], "view 1 is RGB 5 x 5, expected RGB 4 x 4"),
    ],
)
def test_views_that_do_not_stack_are_refused(views: list[Image.Image], message: str) -> None:
    with pytest.raises(StagemeterError, match=message):
        pixel_tensor(views, torch.float32)


def test_whole_number_dtype_is_refused() -> None:
    with pytest.raises(StagemeterError, match=r"torch\.uint8"):
        pixel_tensor([Image.new("RGB", (4, 4))], torch.uint8)


def test_drawing_shows_borders_and_numbers_and_leaves_the_page_alone() -> None:
    page = Image.new("RGB", (1280, 1920), WHITE)
    drawing = draw_grid(page, plan_views(1280, 1920, 1024, 640, crop=True))
    assert page.getcolors() == [(1280 * 1920, WHITE)]
    assert drawing.size == (427, 640)
    reds = numpy.all(numpy.asarray(drawing) == (214, 39, 40), axis=2)
    # A scan line between the labels crosses the borders of two columns, and one through a column those of three rows.
    assert _runs(reds[180]) == 3
    assert _runs(reds[:, 100]) == 4
    assert reds[:12, :12].all(axis=1).any()


def _runs(line: numpy.ndarray) -> int:
    return int(line[0]) + int(numpy.count_nonzero(line[1:] & ~line[:-1]))


def test_drawing_of_a_page_without_tiles_has_a_border_alone() -> None:
    page = Image.new("RGB", (300, 200), WHITE)
    drawing = draw_grid(page, plan_views(300, 200, 1024, 640, crop=True))
    assert drawing.size == (300, 200)
    assert drawing.crop((2, 2, 298, 198)).getcolors() == [(296 * 196, WHITE)]
    assert drawing.getpixel((0, 0)) == (214, 39, 40)


@settings(deadline=None, max_examples=50)
@given(width=st.integers(1, 1500), height=st.integers(1, 1500), max_side=st.integers(1, 200))
def test_any_plan_can_be_drawn(width: int, height: int, max_side: int) -> None:
    drawing = draw_grid(Image.new("RGB", (width, height)), plan_views(width, height, 1024, 64, True), max_side)
    assert max(drawing.size) <= max_side


def test_drawing_refuses_the_plan_of_another_page() -> None:
    page = Image.new("RGB", (10, 20))
    with pytest.raises(StagemeterError, match="planned for a page of 20 x 10, but the page is 10 x 20"):
        draw_grid(page, ViewPlan(20, 10, 1024, 640, (1, 1)))
    with pytest.raises(StagemeterError, match="max_side"):
        draw_grid(page, ViewPlan(10, 20, 1024, 640, (1, 1)), max_side=0)


def test_reading_a_page_does_not_import_torch(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "page.png")
    program = (
        "import sys; from stagemeter.models.families.deepseek_ocr.page import load_page; load_page(sys.argv[1]); "
        "sys.exit(int('torch' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "page.png")], check=True)
