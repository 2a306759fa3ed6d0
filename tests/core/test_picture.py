"""Reading a page's picture: strict, upright, and without clipping."""

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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stagemeter.core import picture as pictures
from stagemeter.core.errors import StagemeterError
from stagemeter.core.picture import encoded_size, load_page, page_size, synthetic_page

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


def test_the_size_of_a_picture_is_decoded_once_until_it_changes(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(pictures, "load_page", lambda path: decoded.append(path) or load_page(path))
    path = tmp_path / "page.png"
    for size in ((30, 20), (300, 20)):
        Image.new("RGB", size).save(path)
        assert page_size(path) == page_size(str(path)) == size
    assert len(decoded) == 2


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
    assert encoded_size(path.read_bytes(), "page") == page.size
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
    with pytest.raises(StagemeterError, match=r"is a folder\. Give a picture of a page"):
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


@pytest.mark.parametrize("content", [b"Dear reader,\n", b"\n%PDF-1.7\n", bytes(1000)])
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(StagemeterError, match=r"page\.png: is not a picture that Pillow can read"):
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
    with pytest.raises(StagemeterError, match="20 x 20: it has 400 pixels, more than the limit of 399"):
        synthetic_page(20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_page(tmp_path / "page.png").size == synthetic_page(20, 20).size


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), r"may not be read \(Permission denied\)\. Change its permissions"),
        (MemoryError(), r"too large: not enough memory for its pixels\. Use a smaller scan"),
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


def test_reading_a_page_does_not_import_torch(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "page.png")
    program = (
        "import sys; from stagemeter.core.picture import load_page; load_page(sys.argv[1]); "
        "sys.exit(int('torch' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "page.png")], check=True)
