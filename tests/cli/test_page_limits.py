"""Limits of pages on the command line: their effect, their errors and their notes."""

import json
import shlex

import pandas
import pytest
from PIL import Image

from stagemeter.analysis.advice import analyze_command
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.models.lookup import describe_model

ESTIMATE = ("analyze", "--estimate", "--no-track", "--new-tokens", "1")


def test_console_says_which_tiles_are_meant(stagemeter):
    page = ("--page-size", "1920x1080")
    authors = stagemeter(*ESTIMATE, *page)
    assert "1,093 image + 10 text tokens" in authors.out
    assert "at most 9 tiles, as the authors' transformers code does; their vLLM recipe cuts at most 6" in authors.out
    recipe = stagemeter(*ESTIMATE, *page, "--max-tiles", "6")
    assert "483 image + 10 text tokens" in recipe.out
    assert "note: a page is cut into at most 6 tiles, as --max-tiles says" in recipe.out
    assert "tiles" not in stagemeter(*ESTIMATE, *page, "--mode", "base").out


def test_limits_of_a_file_are_said_by_its_name(stagemeter, folder):
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(describe_model("qwen2.5-vl-7b").config))
    (model / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 1_003_520}))
    ended = stagemeter(*ESTIMATE, "--model", model)
    assert "1,260 image + 10 text tokens" in ended.out
    assert "max_pixels 1,003,520, from" in (folder / "stagemeter-report" / "static_compute.md").read_text()
    (model / "preprocessor_config.json").write_text('{"max_pixels": -5}')
    ended = stagemeter(*ESTIMATE, "--model", model)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "preprocessor_config.json: max_pixels is -5. It must be a whole number from 1 to" in ended.err


def test_limits_of_a_yaml_file(stagemeter, folder):
    (folder / "run.yaml").write_text("model: qwen2.5-vl-7b\nmax_pixels: 1003520\n")
    ended = stagemeter(*ESTIMATE, "--config", "run.yaml", "--json")
    report = json.loads(ended.out)
    assert report["metadata"]["workload"]["image_tokens"] == 1260
    assert report["metadata"]["config"]["max_pixels"] == 1_003_520
    over = stagemeter(*ESTIMATE, "--config", "run.yaml", "--max-pixels", "401408", "--json")
    assert json.loads(over.out)["metadata"]["workload"]["image_tokens"] == 494


PLAN = ("plan", "--pages-per-day", "1", "--device", "L40S")
PROFILE, IMPORT = ("profile", "--scale", "small"), ("import-profile", "times.csv")
NOT_POSSIBLE = [
    (["--max-tiles", "0"], "--max-tiles: 0 cannot be used. Give a whole number from 1 to 1,024"),
    (["--max-tiles", "5000"], "--max-tiles: 5000 cannot be used. Give a whole number from 1 to 1,024"),
    (["--max-tiles", "1"], "min_tiles: 2 of the family's published values is more than max_tiles, 1 of --max-tiles"),
    (["--min-pixels", "9", "--max-pixels", "8"], "--min-pixels: 9 is more than max_pixels, 8"),
    (["--max-pixels", "9"], "--max-pixels: 9 means nothing to "),
    (["--mode", "tiny", "--max-tiles", "4"], "--max-tiles: 4 means nothing in mode tiny"),
    (
        ["--page-size", "9x9", "--page-size", "8x8"],
        "counted with one page a request. Give one page; `stagemeter sweep`",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), NOT_POSSIBLE)
@pytest.mark.parametrize("command", [ESTIMATE, PLAN, PROFILE, IMPORT])
def test_limits_that_cannot_be_are_refused_in_one_line(stagemeter, command, arguments, message):
    ended = stagemeter(*command, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.strip().splitlines()) == 1
    assert message in ended.err


def test_limits_mean_nothing_to_a_model_of_text(stagemeter):
    for command in (ESTIMATE, IMPORT, ("sweep", "--estimate", "--no-track")):
        ended = stagemeter(*command, "--model", "qwen3-8b", "--max-tiles", "4")
        assert ended.code == 2
        assert "--max-tiles: 4 means nothing to qwen3-8b, of the family qwen3: it has no such limit" in ended.err


def test_a_sweep_takes_a_limit_for_the_modes_that_cut(stagemeter, folder):
    arguments = ("--page-size", "1920x1080", "--estimate", "--no-track")
    ended = stagemeter("sweep", "--mode", "base,gundam", "--max-tiles", "6", *arguments)
    assert ended.code == 0, ended.err
    assert "note: a page is cut into at most 6 tiles, as --max-tiles says" in ended.out
    table = pandas.read_parquet(folder / "sweep.parquet")
    assert dict(zip(table["mode"], table["image_tokens"], strict=True)) == {"base": 273, "gundam": 483}
    for limits, message in (
        (["--mode", "base", "--max-tiles", "6"], "--max-tiles: 6 means nothing in mode base"),
        (["--max-tiles", "4,6"], "--max-tiles: 2 values were given. Give one"),
        (["--max-pixels", "6"], "--max-pixels: 6 means nothing to deepseek-ocr"),
        (["--mode", "tiny", "--mode", "base"], "--mode: given 2 times. Give it once: write several values between"),
        (["--images", "a", "--images", "b"], "--images: given 2 times"),
    ):
        refused = stagemeter("sweep", *arguments, *limits)
        assert refused.code == 2
        assert message in refused.err


def test_rows_of_a_sweep_with_a_limit_are_single_analyses():
    from stagemeter import estimate_report
    from stagemeter.sweeping.build import SweepSettings, build_grids
    from stagemeter.sweeping.single import differences

    (grid,) = build_grids(SweepSettings(mode="base,gundam", page_size="1920x1080", max_tiles="6", new_tokens="1,2"))
    for row in range(grid.size):
        assert differences(grid, row, lambda config: estimate_report(grid.architecture, "m", config)) == []


@pytest.mark.parametrize(
    ("model", "asked"),
    [("deepseek-ocr", {"max_tiles": 6}), ("qwen2.5-vl-7b", {"min_pixels": 300_000, "max_pixels": 500_000})],
)
def test_the_command_that_messages_advise_names_the_limits(stagemeter, model, asked):
    config = AnalysisConfig(model=model, image_w=1920, image_h=1080, **asked)
    workload = plan_request(config, describe_model(model))
    # Params of a run are text, and hold more than limits.
    words = shlex.split(analyze_command(model, workload, {name: str(value) for name, value in asked.items()}))
    for option, value in asked.items():
        assert words[words.index(f"--{option.replace('_', '-')}") + 1] == str(value)
    if model == "deepseek-ocr":
        ended = stagemeter(*words[1:], "--estimate", "--no-track", "--json")
        assert json.loads(ended.out)["metadata"]["workload_hash"] == workload.hash


def test_further_pages_of_a_picture_are_left_out_with_a_word(stagemeter, folder):
    pages = [Image.new("RGB", (700, 900))] * 3
    pages[0].save(folder / "scan.tiff", save_all=True, append_images=pages[1:])
    assert (
        "left out: 2 further pages of a file, whose first one counts"
        in stagemeter(*ESTIMATE, "--image", "scan.tiff").out
    )
    pages[0].save(folder / "scan.png")
    assert "further page" not in stagemeter(*ESTIMATE, "--image", "scan.png").out
