"""Pictures of every kind that a scanner or a phone makes, measured upright."""

import pytest
from PIL import Image

SIZE = (300, 200)
#: What Pillow reads from files that were saved in another mode.
READ_AS = {"colour.jpg": "RGB"}


def save(folder, name: str, mode: str) -> str:
    """Save a noisy picture of some pixel type."""
    noise = Image.effect_noise(SIZE, 80)
    if mode == "I;16":
        picture = noise.point(lambda level: level * 257, mode="I").convert("I;16")
    elif mode == "P":
        picture = Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)]).quantize(17)
    else:
        picture = noise.convert("RGB").convert(mode)
        if mode.endswith("A"):
            picture.putalpha(noise)
    picture.save(folder / name)
    with Image.open(folder / name) as saved:
        assert saved.mode == READ_AS.get(name, mode), "the picture is not of the kind that the test is about"
    return name


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("cmyk.jpg", "CMYK"),
        ("cmyk.tif", "CMYK"),
        ("colour.jpg", "YCbCr"),
        ("palette.png", "P"),
        ("palette.gif", "P"),
        ("16-bit.png", "I;16"),
        ("16-bit.tif", "I;16"),
        ("alpha.png", "RGBA"),
        ("alpha.webp", "RGBA"),
        ("grey-alpha.png", "LA"),
        ("grey.png", "L"),
        ("fax.tif", "1"),
        ("plain.bmp", "RGB"),
    ],
)
def test_kind_of_picture_works(estimate, folder, name, mode):
    report = estimate("--image", save(folder, name, mode))
    workload = report["metadata"]["workload"]
    assert (workload["image_width"], workload["image_height"]) == SIZE
    assert report["metadata"]["config"]["sample_image_path"] == name


@pytest.mark.parametrize("name", ["animated.gif", "animated.png", "animated.webp", "pages.tif"])
def test_first_frame_of_several_is_the_page(estimate, folder, name):
    frames = [Image.new("RGB", SIZE, colour) for colour in ("white", "red", "blue")]
    frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    workload = estimate("--image", name)["metadata"]["workload"]
    assert (workload["image_width"], workload["image_height"]) == SIZE


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, False), (6, True), (8, True)])
def test_picture_is_turned_as_its_camera_says(estimate, folder, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (1200, 700), "white").save(folder / "photo.jpg", exif=exif)
    workload = estimate("--image", "photo.jpg")["metadata"]["workload"]
    assert (workload["image_width"], workload["image_height"]) == ((700, 1200) if turned else (1200, 700))
    columns, rows = workload["tile_grid"]
    assert (columns < rows) == turned


def test_name_with_spaces_and_umlauts(estimate, folder):
    name = save(folder, "Seite 1 – Größe.png", "L")
    assert estimate("--image", name)["metadata"]["workload"]["image_width"] == SIZE[0]


def test_page_of_one_pixel_is_a_page(estimate, folder):
    Image.new("L", (1, 1)).save(folder / "dot.png")
    assert estimate("--image", "dot.png")["metadata"]["workload"]["local_views"] == 0
