"""Several pages of one request: on the command line, in a file of settings, and in what commands print."""

import json

import pytest
from PIL import Image
from pypdfium2 import PdfDocument

ESTIMATE = ("analyze", "--estimate", "--no-track", "--new-tokens", "1", "--model", "qwen2.5-vl-7b")


def workload_of(ended):
    assert ended.code == 0, ended.err
    return json.loads(ended.out)["metadata"]["workload"]


def test_pages_of_a_request_are_given_one_by_one(stagemeter, folder):
    for name, size in (("a.png", (800, 600)), ("b.png", (448, 336))):
        Image.new("RGB", size).save(folder / name)
    sizes = workload_of(stagemeter(*ESTIMATE, "--page-size", "800x600", "--page-size", "448x336", "--json"))
    pictures = workload_of(stagemeter(*ESTIMATE, "--image", "a.png", "--image", "b.png", "--json"))
    assert sizes == pictures
    (further,) = sizes["further_pages"]
    assert (further["times"], further["image_tokens"], further["tags"]) == (1, 192, 2)
    assert sizes["prompt_tokens"] == 609 + 192 + 2 + 10
    (folder / "pages.yaml").write_text("sample_image_path: a.png\nfurther_pages: [448x336]\n")
    mixed = stagemeter(*ESTIMATE, "--config", "pages.yaml", "--json")
    assert workload_of(mixed) == sizes
    # A page of the command line takes the place of all pages of the file.
    over = workload_of(stagemeter(*ESTIMATE, "--config", "pages.yaml", "--page-size", "900x700", "--json"))
    assert (over["image_width"], over["further_pages"]) == (900, None)


@pytest.fixture
def pdf(folder):
    document = PdfDocument.new()
    for width in (180, 360, 360):
        document.new_page(width, 720)
    document.save(folder / "scan.pdf")


def test_numbers_of_a_pdf_are_pages_of_a_request(stagemeter, folder, pdf):
    Image.new("RGB", (800, 600)).save(folder / "a.png")
    sizes = [word for size in ("800x600", "250x1000", "500x1000", "500x1000") for word in ("--page-size", size)]
    expected = workload_of(stagemeter(*ESTIMATE, *sizes, "--json"))
    files = ("--image", "a.png", "--image", "scan.pdf[1-]", "--dpi", "100")
    assert workload_of(stagemeter(*ESTIMATE, *files, "--json")) == expected
    turned = workload_of(stagemeter(*ESTIMATE, "--image", "scan.pdf[2-3,1]", *files[:2], "--dpi", "100", "--json"))
    assert [page["image_width"] for page in (turned, *turned["further_pages"])] == [500, 500, 250, 800]
    # A file without numbers is its first page, wherever it stands.
    ended = stagemeter(*ESTIMATE, "--image", "a.png", "--image", "scan.pdf")
    assert "left out: 2 further pages of a file" in ended.out


def test_all_requests_of_a_log_have_the_given_pages(stagemeter, folder, pdf):
    (folder / "log.csv").write_text("prompt_tokens,output_tokens\n9000,5\n")
    command = ("analyze", "--no-track", "--model", "qwen2.5-vl-7b", "--requests", "log.csv", "--json")
    given = json.loads(stagemeter(*command, "--image", "scan.pdf[1-3]").out)
    (folder / "log.csv").write_text('prompt_tokens,output_tokens,image_sizes\n9000,5,"500x2000,1000x2000,1000x2000"\n')
    said = json.loads(stagemeter(*command).out)
    assert given["stages"] == said["stages"]
    refused = stagemeter(*command, "--images-per-request", "2")
    assert "--images-per-request 2: each request says its own" in refused.err


def test_equal_pages_are_a_group(stagemeter, folder):
    workload = workload_of(stagemeter(*ESTIMATE, "--images-per-request", "1000", "--page-size", "800x600", "--json"))
    (further,) = workload["further_pages"]
    assert further["times"] == 999
    assert workload["prompt_tokens"] == 1000 * 609 + 999 * 2 + 10
    ended = stagemeter(*ESTIMATE, "--images-per-request", "1000", "--page-size", "800x600")
    assert "1,000 pages of 800x600, mode own: 1 x 812x588 each; 609,000 image + 1,998 around them + 10" in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images-per-request", "0"], "--images-per-request: 0 cannot be used. Give a whole number from 1 to"),
        (["--images-per-request", "2", "--page-size", "9x9", "--page-size", "8x8"], "and 2 pages are given"),
        (["--image", "scan.pdf[1-2]", "--images-per-request", "2"], "2 pages like one, and 2 pages are given"),
        (["--image", "scan.pdf[1-2]", "--video-frames", "2"], "--video-frames: 2 beside several pages"),
        (["--image", "scan.pdf[1-4]"], "scan.pdf[1-4]: the document has the pages 1 to 3"),
        (["--model", "deepseek-ocr", "--image", "scan.pdf[1-3]"], "--image: 3 pages, and deepseek-ocr"),
        (["--video-frames", "4", "--images-per-request", "2"], "--video-frames: 4 beside several pages"),
        (["--page-size", "800x600", "--image", "a.png"], "--image"),
        (["--page-size", "800x600", "--page-size", "1x"], "'1x' is not a page size"),
        (["--image", "no.png", "--image", "no.png"], "no.png"),
        (["--images-per-request", "2", "--cached-tokens", "5000"], "cuts page 2 of 2"),
        (["--model", "trocr-base", "--images-per-request", "2"], "trocr-base (trocr) is counted with one page"),
        (["--model", "llama-3.2-11b-vision", "--images-per-request", "2"], "(mllama) is counted with one page"),
    ],
)
def test_pages_that_cannot_be_are_refused_in_one_line(stagemeter, folder, pdf, arguments, message):
    ended = stagemeter(*ESTIMATE, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.strip().splitlines()) == 1
    assert message in ended.err


def test_cached_pages_are_not_encoded(stagemeter, folder):
    pages = ("--page-size", "800x600", "--page-size", "448x336", "--json")
    ended = stagemeter(*ESTIMATE, *pages, "--cached-tokens", "609")
    second = stagemeter(*ESTIMATE, "--page-size", "448x336", "--json")
    vit, alone = (json.loads(one.out)["stages"]["vit"]["flops"] for one in (ended, second))
    assert vit == alone


def test_tokens_of_one_request_are_those_that_a_server_counts(stagemeter, folder):
    """Recorded from vLLM 0.32 with two pictures: 12 text tokens, and two around each picture."""
    pages = ("224x560", "612x792", "--max-pixels", "1003520", "--text-tokens", "14", "--one-request")
    ended = stagemeter("tokens", "--model", "qwen2.5-vl-7b", *pages, "--json")
    document = json.loads(ended.out)
    assert document["request"] == {"pages": 2, "image_tokens": 776, "tags": 2, "prompt_tokens": 792}
    assert [page["image_tokens"] for page in document["pages"]] == [160, 616]
    refused = stagemeter("tokens", "--model", "trocr-base", "9x9", "8x8", "--one-request")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "--one-request: 2 pages, and trocr-base" in refused.err
    refused = stagemeter("tokens", "--model", "qwen2.5-vl-7b", "90x90", "--one-request", "--fit", "9")
    assert "--fit answers for a page alone" in refused.err


def test_pages_of_a_corpus_stand_for_no_others(stagemeter, folder):
    (folder / "sizes.csv").write_text("width,height\n800,600\n")
    plan = ("plan", "--model", "qwen2.5-vl-7b", "--pages", "sizes.csv", "--pages-per-day", "9", "--device", "H200-SXM")
    for given in (("--page-size", "448x336"), ("--page-size", "1654x2339", "--page-size", "90x90")):
        refused = stagemeter(*plan, "--no-track", *given)
        assert (refused.code, "the pages of sizes.csv count" in refused.err) == (2, True)
