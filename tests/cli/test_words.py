"""The model and the pages as words: what they mean, and that options go on working."""

import json

import pytest
from click.shell_completion import ShellComplete
from PIL import Image

from stagemeter.cli import cli
from stagemeter.cli.words import split_words
from stagemeter.cli.workload import given_settings

ESTIMATE = ("analyze", "--estimate", "--no-track", "--json", "--new-tokens", "1")


@pytest.fixture
def pages(folder, make_pdf):
    Image.new("RGB", (800, 600)).save(folder / "a.png")
    make_pdf(folder / "b.pdf", (72, 144), (144, 72))


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["qwen2.5-vl-7b"], {"model": "qwen2.5-vl-7b"}),
        (["org/Name", "a.png"], {"model": "org/Name", "sample_image_path": "a.png"}),
        (["m", "b.pdf[2]", "70x60"], {"model": "m", "sample_image_path": "b.pdf[2]", "further_pages": ("70x60",)}),
        (["m", "90x80", "a.png"], {"model": "m", "image_w": 90, "image_h": 80, "further_pages": ("a.png",)}),
        (["a.png"], {"sample_image_path": "a.png"}),
        (["90x80"], {"image_w": 90, "image_h": 80}),
        ([], {}),
    ],
)
def test_words_mean_what_options_mean(pages, words, settings):
    assert given_settings(words) == settings


def test_what_is_said_twice_may_be_the_same(stagemeter, pages):
    words = ("qwen2.5-vl-7b", "a.png", "448x336", "--model", "qwen2.5-vl-7b")
    ended = stagemeter(*ESTIMATE, *words)
    assert ended.code == 0, ended.err
    request = json.loads(ended.out)["metadata"]["workload"]
    assert (request["image_width"], request["further_pages"][0]["image_width"]) == (800, 448)
    assert given_settings(("90x80",), page_size=[(90, 80)]) == given_settings(("90x80",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qwen2.5-vl-7b", "--model", "qwen2.5-vl-3b"], "MODEL, --model: qwen2.5-vl-7b and qwen2.5-vl-3b exclude"),
        (["qwen2.5-vl-7b", "--scale", "small"], "--scale, --model: small and qwen2.5-vl-7b exclude each other"),
        (["qwen2.5-vl-7b", "a.png", "--image", "b.pdf[1]"], "PAGE, --image: a.png and b.pdf[1] exclude each other"),
        (["qwen2.5-vl-7b", "9x9", "--page-size", "8x8"], "PAGE, --page-size: 9x9 and 8x8 exclude each other"),
        (["qwen2.5-vl-7c"], "'qwen2.5-vl-7c' is unknown. Did you mean 'qwen2.5-vl-7b'"),
        (["qwen2.5-vl-7b", "missing.png"], "missing.png: no such picture of a page"),
        (["missing.pdf"], "missing.pdf: no such"),
        (["qwen2.5-vl-7b", "llama-3.1-8b"], "llama-3.1-8b: no such picture of a page"),
        (["qwen2.5-vl-7b", "."], "is a folder. Give a picture of a page"),
        ([""], "MODEL, PAGE: empty. Give a name"),
        (["qwen2.5-vl-7b", "--images-per-request", "2", "9x9", "8x8"], "and 2 pages are given"),
    ],
)
def test_words_that_cannot_be_are_refused_in_one_line(stagemeter, pages, words, message):
    ended = stagemeter(*ESTIMATE, *words)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1), ended.err
    assert message in ended.err


def test_a_folder_is_a_model_where_it_describes_one(folder):
    (folder / "qwen").mkdir()
    assert split_words(["qwen", "a.png"]) == (None, ["qwen", "a.png"])
    (folder / "qwen" / "config.json").write_text("{}")
    assert split_words(["qwen", "a.png"]) == ("qwen", ["a.png"])
    # As everywhere, the name of a shipped model comes first.
    (folder / "llama-3.1-8b").mkdir()
    assert split_words(["llama-3.1-8b"]) == ("llama-3.1-8b", [])


def test_tokens_take_the_model_as_a_word(stagemeter, pages):
    named = stagemeter("tokens", "--model", "qwen2.5-vl-7b", "a.png", "b.pdf", "--json")
    assert named.code == 0, named.err
    assert stagemeter("tokens", "qwen2.5-vl-7b", "a.png", "b.pdf", "--json") == named
    missing = stagemeter("tokens", "qwen2.5-vl-7b")
    assert (missing.code, missing.err.startswith("error: PAGE: missing. Give a picture")) == (2, True)


def test_a_sweep_takes_models_as_words(stagemeter):
    unknown = stagemeter("sweep", "llama-3.1-8b", "qwen3-8c", "--estimate", "--no-track")
    assert (unknown.code, "'qwen3-8c' is unknown" in unknown.err) == (2, True)
    refused = stagemeter("sweep", "llama-3.1-8b", "--model", "qwen3-8b")
    assert (refused.code, "MODEL, --model: llama-3.1-8b and qwen3-8b exclude" in refused.err) == (2, True)


def test_a_plan_takes_model_and_page_as_words(stagemeter):
    wanted = ("--pages-per-day", "1M", "--device", "H100-SXM", "--no-track", "--json")
    words = stagemeter("plan", "qwen2.5-vl-7b", "90x80", *wanted)
    assert words.code == 0, words.err
    assert words == stagemeter("plan", "--model", "qwen2.5-vl-7b", "--page-size", "90x80", *wanted)


def test_a_shell_completes_models_and_files():
    completion = ShellComplete(cli, {}, "stagemeter", "_STAGEMETER_COMPLETE")
    offered = completion.get_completions(["analyze"], "qwen2.5-vl-7")
    assert [(item.type, item.value) for item in offered] == [("file", "qwen2.5-vl-7"), ("plain", "qwen2.5-vl-7b")]
