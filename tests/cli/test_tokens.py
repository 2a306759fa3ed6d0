"""`stagemeter tokens`: what pages become, as processors of transformers make it, and what fits."""

import json

import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

QWEN = ("--model", "qwen2.5-vl-7b")


@pytest.fixture
def tokens(stagemeter):
    def run(*arguments: object) -> dict:
        ended = stagemeter("tokens", *arguments, "--json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return run


def of_qwen(width, height):
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 16384})
    return processor.get_number_of_image_patches(height, width, {}) // 4


def test_each_kind_of_page_is_read(tokens, folder, make_pdf):
    (folder / "scans" / "inner").mkdir(parents=True)
    Image.new("L", (1240, 1754)).save(folder / "scans" / "a.png")
    Image.new("L", (600, 400)).save(folder / "scans" / "inner" / "b.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.new("L", (300, 200)).save(folder / "turned.jpg", exif=rotated)
    (folder / "sizes.csv").write_text("width,height,page\n800,600,first\n900,600,second\n")
    make_pdf(folder / "scan.pdf", *[(72 * number, 36) for number in range(1, 7)])
    found = tokens(*QWEN, "turned.jpg", "scans", "sizes.csv", "1654x2339", "scan.pdf[2-3,6-]")
    expected = [
        ("turned.jpg", 200, 300),
        ("a.png", 1240, 1754),
        ("inner/b.png", 600, 400),
        ("first", 800, 600),
        ("second", 900, 600),
        ("1654x2339", 1654, 2339),
        ("scan.pdf[2]", 400, 100),
        ("scan.pdf[3]", 600, 100),
        ("scan.pdf[6]", 1200, 100),
    ]
    assert [(page["page"], page["image_width"], page["image_height"]) for page in found["pages"]] == expected
    assert [page["image_tokens"] for page in found["pages"]] == [of_qwen(*size) for _, *size in expected]


def test_tokens_views_and_limits_are_those_of_an_analysis(tokens, estimate):
    for asked in (["--model", "deepseek-ocr"], ["--model", "qwen3-vl-8b", "--video-frames", "64"]):
        workload = estimate(*asked, "--page-size", "1280x720", "--text-tokens", 240)["metadata"]["workload"]
        (page,) = tokens(*asked, "1280x720", "--text-tokens", 240)["pages"]
        assert page.items() <= {"page": "1280x720", **workload}.items()


def test_limits_are_named_with_their_origin(tokens, stagemeter, folder):
    published = "the family's published values"
    found = tokens(*QWEN, "1654x2339", "--max-pixels", 401_408)
    assert found["limits"] == {
        "min_pixels": {"value": 3136, "origin": published},
        "max_pixels": {"value": 401_408, "origin": "--max-pixels"},
    }
    assert found["pages"][0]["image_tokens"] == 494
    said = stagemeter("tokens", "1920x1080").out
    assert "limit: max_tiles 9, from the family's published values" in said
    assert "note: a page is cut into at most 9 tiles, as the authors' transformers code does" in said
    assert tokens("1920x1080", "--mode", "base")["limits"] == {}
    (folder / "run.yaml").write_text("model: qwen2.5-vl-7b\nmax_pixels: 1003520\nsample_image_path: none.png\n")
    assert tokens("1654x2339", "--config", "run.yaml")["pages"][0]["image_tokens"] == 1260


def test_an_animation_is_a_video_to_models_that_read_some(tokens, stagemeter, folder):
    frames = [Image.new("RGB", (320, 200), (level, 0, 0)) for level in range(0, 240, 10)]
    for name in ("moving.gif", "moving.png", "pages.tiff"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=250)
    # Six seconds, of which Qwen 3-VL takes two frames each.
    found = tokens("--model", "qwen3-vl-8b", "moving.gif", "moving.png", "pages.tiff")
    assert [page.get("video_frames") for page in found["pages"]] == [12, 12, None]
    assert found["pages"][0]["file"] == {"frames": 24, "frames_per_second": 4}
    same = tokens("--model", "qwen3-vl-8b", "--video-frames", 12, "320x200")
    assert same["pages"][0]["image_tokens"] == found["pages"][0]["image_tokens"]
    assert found["limits"] == same["limits"]
    assert "moving.gif: 12 of 24 frames at 4 a second; limits of videos: min_frames 4, max_frames 768, fps 2" in str(
        found["notes"]
    )
    (page,) = tokens(*QWEN, "moving.gif")["pages"]
    assert page["video_frames"] == 24
    (page,) = tokens(*QWEN, "moving.gif", "--video-frames", 6)["pages"]
    assert (page["video_frames"], page["image_tokens"]) == (6, 3 * 77)
    said = stagemeter("tokens", *QWEN, "moving.gif", "--video-frames", 25)
    assert "--video-frames: 25 of the 24 frames of moving.gif cannot be sampled. Give at most 24" in said.err
    assert "video_frames" not in tokens("--model", "internvl3-1b", "moving.gif")["pages"][0]


def test_a_folder_says_what_it_leaves_out(stagemeter, folder):
    (folder / "scans").mkdir()
    (folder / "scans" / "a.txt").write_bytes(b"%PDF")
    pages = [Image.new("L", (700, 900))] * 3
    pages[0].save(folder / "scans" / "b.tiff", save_all=True, append_images=pages[1:])
    said = stagemeter("tokens", *QWEN, "scans").out
    assert "1 file that is no picture" in said
    assert "2 further pages of pictures" in said
    assert "2 further pages of pictures" in stagemeter("tokens", *QWEN, "scans/b.tiff").out


def test_pages_of_a_pdf_have_a_resolution(tokens, folder, make_pdf):
    make_pdf(folder / "scan.pdf", (595.276, 841.89), (612, 792))
    sizes = [(page["image_width"], page["image_height"]) for page in tokens(*QWEN, "scan.pdf")["pages"]]
    assert sizes == [(1654, 2339), (1700, 2200)]
    # The page is a blank one of the same size, but for its resolution.
    given = tokens(*QWEN, "1654x2339", "--dpi", 200, "--fit", 2048)["pages"][0]["fit"]
    for dpi in (100, 200):
        found = tokens(*QWEN, "scan.pdf[1]", "--fit", 2048, "--dpi", dpi)["pages"][0]
        assert found["fit"]["dpi"] == given["dpi"] == 128
        assert found["image_width"] == -(-595.276 * dpi // 72)
    assert tokens(*QWEN, "scan.pdf[1]", "--fit", 2048)["pages"][0]["fit"]["dpi"] == 128


def test_fit_is_said_with_its_step(stagemeter):
    said = stagemeter("tokens", *QWEN, "1654x2339", "--fit", 2048, "--dpi", 200).out
    line = next(line for line in said.splitlines() if line.startswith("into "))
    assert line.startswith(
        "into 2,048 tokens, 1654x2339: at most 1059x1497 at 128 DPI with 2,014 tokens, 2,052 a DPI above"
    )
    assert line.endswith("; or as it is with --max-pixels 1616623")
    said = stagemeter("tokens", "--model", "internvl3-1b", "1654x2339", "--fit", 100).out
    assert "no smaller size of this shape fits\n" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "PAGE: missing. Give a picture, a folder, a CSV of sizes or a size as 1654x2339"),
        (("none.png",), "PAGE none.png: no such picture of a page. Check the path"),
        (("0x5",), "PAGE 0x5: sides have from 1 to 100000 pixels. Give another size"),
        (("99999x99999",), "it has 9999800001 pixels, more than the limit"),
        (("page.png",), "PAGE page.png: is not a picture that Pillow can read"),
        (("cut.png",), "cut.png: is damaged or incomplete"),
        (("empty.png",), "empty.png: is empty (0 bytes)"),
        (("bare",), "PAGE bare: holds no PDF, and no picture that Pillow reads"),
        (("broken.csv",), "PAGE broken.csv: line 3: height is "),
        (("page.pdf",), "PAGE page.pdf: is an incomplete PDF, without the mark of its end. Save or copy it again"),
        (("none.pdf[2]",), "PAGE none.pdf: no such PDF. Check the path"),
        (("clip.mp4",), "PAGE clip.mp4: deepseek-ocr reads no videos. The families qwen2-vl,"),
        (("none.mp4", *QWEN), "PAGE none.mp4: no such video. Check the path"),
        (("9x9", "--model", "qwen3-8b"), "--model qwen3-8b: it reads text alone, and no page. Give a model"),
        (("9x9", "--model", "no-such-model"), "no-such-model"),
        (("9x9", "--max-pixels", 9), "--max-pixels: 9 means nothing to deepseek-ocr"),
        (("9x9", "--fit", 0), "--fit: 0 cannot be used. Give a whole number, 1 or more"),
        (("9x9", "--fit", "many"), "--fit: "),
        (("--image", "page.png"), "--image: no such option. Give pictures and sizes without it"),
        (("9x9", "--dpi", 200), "--dpi: 200 means nothing without a PDF. Leave it out, or give PDFs"),
        (("5000x1", *QWEN), "one side is more than 200 times the other"),
        (("9x9", "--video-frames", 4), "--video-frames 4: deepseek-ocr reads no videos"),
    ],
)
def test_bad_input_is_refused_in_one_line(stagemeter, folder, arguments, message):
    (folder / "page.png").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    Image.effect_noise((90, 90), 50).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:900])
    (folder / "clip.mp4").write_bytes(b"no video")
    (folder / "bare").mkdir()
    (folder / "broken.csv").write_text("width,height\n5,5\n5,-5\n")
    (folder / "page.pdf").write_bytes(b"%PDF-1.7")
    ended = stagemeter("tokens", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.strip().splitlines()) == 1
    assert message in ended.err
