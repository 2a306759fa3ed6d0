"""MLflow's own pages in a real browser, with runs that the commands logged."""

import io
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image, ImageColor

from stagemeter.core.metrics import training_values

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need the extra browser")
expect = playwright.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium: apt-get install chromium"),
]
MODES = ("tiny", "base", "gundam")
# The window of a laptop. What is below its lower edge, few look at.
LAPTOP = {"width": 1440, "height": 900}
# Colours that MLflow gives the first metrics of a chart of several (``RunsMetricsBarPlot`` of 3.17).
COLOURS = ("#2196F3", "#FF9800", "#4CAF50", "#E91E63", "#9C27B0")
# How long a page may take on a machine that is busy with other tests.
PATIENCE_MS = 60_000
# MLflow's assistant covers part of a page on a first visit, and moves as it opens. A visitor who has seen it before is
# not shown it again: what MLflow's page keeps of that, by the name and version that mlflow/server/js gives it.
SEEN_BEFORE = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


class Logged(NamedTuple):
    """Log runs to a server."""

    address: str
    statics: dict[str, str]
    links: list[str]
    profile: str
    comparison: str
    sweep: str
    experiments: dict[str, str]

    def page(self, experiment: str, run: str, tab: str = "") -> str:
        tab = f"/{tab}" if tab else ""
        return (
            f"{self.address}/#/experiments/{self.experiments[experiment]}/runs/{run}{tab}?workflowType=machine_learning"
        )


@pytest.fixture(scope="module")
def logged(server, tmp_path_factory) -> Logged:
    """Log three static runs, a paired profile, a comparison and a sweep with children by the real commands."""
    folder = tmp_path_factory.mktemp("browser")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = server

    def stagemeter(*arguments: object) -> tuple[str, str]:
        command = [sys.executable, "-m", "stagemeter", *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    links = []
    for mode in MODES:
        _, said = stagemeter("analyze", "--estimate", "--mode", mode, "--experiment", "seen-counts", "--run-name", mode)
        links.append(next(line for line in said.splitlines() if line.startswith("beside others: ")).split()[-1])
    times = {"sam": [30, 31], "clip": [9, 9.1], "projector": [0.2, 0.21], "prefill": [28, 27], "decode": [7, 7.1]}
    (folder / "times.json").write_text(json.dumps(times))
    options = ("--mode", "base", "--device", "A100-SXM-40GB", "--experiment", "seen-profiles", "--run-name", "measured")
    profile = json.loads(stagemeter("import-profile", "times.json", *options, "--json")[0])["run_id"]
    stagemeter("mfu", "--profile-run", profile)
    _, said = stagemeter("compare", "base", "gundam", "--log", "--run-name", "base or gundam")
    comparison = next(line for line in said.splitlines() if line.startswith("run ")).split()[1].rstrip(":")
    grid = ("--mode", ",".join(MODES), "--batch-size", "1,4", "--new-tokens", "100,200", "--device", "A100-80GB")
    options = ("--experiment", "seen-sweeps", "--run-name", "modes", "--child-runs", "pareto", "--estimate", "--json")
    sweep = json.loads(stagemeter("sweep", *grid, *options)[0])["run_id"]

    import mlflow

    client = mlflow.MlflowClient(server)
    experiments = {found.name: found.experiment_id for found in client.search_experiments()}
    statics = {run.info.run_name: run.info.run_id for run in client.search_runs([experiments["seen-counts"]])}
    return Logged(server, statics, links, profile, comparison, sweep, experiments)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        # Where tests run as root, as in containers, Chromium's sandbox does not start.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser):
    """Open a page as a visitor who has closed the assistant before."""
    pages = []

    def run(address: str, **settings):
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 1800}, **settings})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        if address.startswith("http"):
            page.add_init_script(SEEN_BEFORE)
        page.goto(address)
        pages.append(page)
        return page

    yield run
    for page in pages:
        page.close()


def heading_of(page, section: str):
    """Return the heading of a section of charts: its name, and their number."""
    return page.get_by_role("button").filter(has=page.get_by_text(section, exact=True))


def seen(page, element) -> Image.Image:
    """Return an element as the window shows it. Fail if a part of it is outside."""
    element.wait_for()
    box = element.bounding_box()
    window = page.viewport_size
    assert box["x"] >= 0
    assert box["y"] >= 0
    assert box["x"] + box["width"] <= window["width"], box
    assert box["y"] + box["height"] <= window["height"], box
    picture = Image.open(io.BytesIO(page.screenshot()))
    assert picture.size == (window["width"], window["height"])
    return picture.crop((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])).convert("RGB")


def pixels_of(picture: Image.Image, colour: str) -> int:
    """Return how many pixels have a colour."""
    wanted = ImageColor.getrgb(colour)
    return sum(count for count, found in picture.getcolors(picture.width * picture.height) if found == wanted)


def description(page):
    """Return the beginning of a run's description, that is what is above "Show more": its headline, and its table."""
    more = page.get_by_text("Show more", exact=True)
    more.wait_for()
    return page.locator("p").filter(has=page.locator("strong")).first, page.locator("table").first, more


def row_of(page, table, name: str):
    """Return the row of a table that begins with a name."""
    return table.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first


def require_shown(page, table, more, rows) -> None:
    """Fail if a row of a description's table is below what MLflow shows of it at first, or outside of the window."""
    for name in rows:
        row = row_of(page, table, name)
        seen(page, row)
        assert row.bounding_box()["y"] + row.bounding_box()["height"] <= more.bounding_box()["y"], name


def test_run_page_begins_with_the_answer_and_the_table(logged, visit):
    page = visit(logged.page("seen-counts", logged.statics["base"]), viewport=LAPTOP)
    expect(page.get_by_role("heading", name="base")).to_be_visible()
    headline, table, more = description(page)
    expect(headline).to_have_text("1.98 TFLOPs a request, 1.38 TFLOPs before the first token.")
    seen(page, headline)
    cells = {"Stage": ["sam", "total"], "FLOPs": ["977", "1.98"], "Share": ["49.3", "100.0"]}
    require_shown(page, table, more, cells)
    for row, texts in cells.items():
        for text in texts:
            expect(row_of(page, table, row)).to_contain_text(text)
    # Markdown is rendered, not shown.
    expect(page.get_by_text("|sam")).to_have_count(0)
    # Metrics follow, the total first.
    first = page.get_by_role("link", name="flops/total", exact=True)
    seen(page, first)
    assert first.bounding_box()["y"] < page.get_by_role("link", name="flops/sam", exact=True).bounding_box()["y"]


def test_charts_page_begins_with_flops_of_each_stage(logged, visit):
    page = visit(logged.links[-1], viewport=LAPTOP)
    heading = heading_of(page, "by stage")
    seen(page, heading)
    card = page.get_by_test_id("experiment-view-compare-runs-card").first
    expect(card).to_contain_text("flops/sam vs flops/clip vs flops/projector + 2 more")
    card.locator(".bars path").first.wait_for()
    picture = seen(page, card)
    assert all(pixels_of(picture, colour) > 20 for colour in COLOURS)
    # Of analyses alone, whatever else is in the experiment, and beside bytes and parameters.
    expect(page.get_by_placeholder("metrics.rmse").first).to_have_value("tags.`stagemeter.kind` LIKE 'static%'")
    expect(heading).to_contain_text("(3)")


def test_list_of_runs_has_the_totals(logged, visit):
    page = visit(logged.links[-1].replace("&compareRunsMode=CHART", ""), viewport=LAPTOP)
    seen(page, page.get_by_text("flops/total", exact=True).first)
    expect(page.get_by_text("1980143673344").first).to_be_visible()


def test_comparison_of_mlflow_opens_with_the_total(logged, visit):
    runs = urllib.parse.quote(json.dumps([logged.statics[mode] for mode in MODES]))
    experiments = urllib.parse.quote(json.dumps([logged.experiments["seen-counts"]]))
    page = visit(f"{logged.address}/#/compare-runs?runs={runs}&experiments={experiments}", viewport=LAPTOP)
    seen(page, page.get_by_text("flops/total", exact=True).first)


def test_training_has_a_section_of_mfu_by_stage(logged, visit):
    import mlflow

    parts = {"train": 0.4} | {f"train/{stage}": 0.1 for stage in ("vision", "projector", "language_model", "head")}
    values = training_values({"parts": {part: {"mfu": mfu, "step_ms": 80.0} for part, mfu in parts.items()}})
    client = mlflow.MlflowClient(logged.address)
    experiment = client.create_experiment("seen-trainings")
    run = client.create_run(experiment).info.run_id
    for step in (2, 4):
        client.log_batch(run, [mlflow.entities.Metric(name, value, step, step) for name, value in values.items()])
    page = visit(
        logged._replace(experiments={"seen-trainings": experiment}).page("seen-trainings", run, "model-metrics")
    )
    expect(heading_of(page, "mfu/train")).to_contain_text("(4)")
    expect(page.get_by_title("mfu/train/vision")).to_be_visible()


def test_metrics_are_grouped_by_quantity(logged, visit):
    page = visit(logged.page("seen-counts", logged.statics["base"], "model-metrics"))
    expect(heading_of(page, "bytes")).to_contain_text("(7)")
    page.get_by_placeholder("Search metric charts").fill("^flops/")
    expect(heading_of(page, "flops")).to_contain_text("(8)")
    expect(page.get_by_title("flops/decode_total")).to_be_visible()
    expect(page.get_by_title("bytes/decode_total")).to_have_count(0)


def test_files_are_previewed(logged, visit):
    page = visit(logged.page("seen-counts", logged.statics["base"], "artifacts"))
    page.get_by_text("static_compute.md", exact=True).click()
    expect(page.get_by_role("heading", name="deepseek-ocr").first).to_be_visible()
    page.get_by_text("static_compute.json", exact=True).click()
    expect(page.get_by_text("schema_version").first).to_be_visible()
    page.get_by_text("stages.json", exact=True).click()
    expect(page.get_by_text("agreement").first).to_be_visible()
    page.get_by_text("flops_per_stage.png", exact=True).click()
    expect(page.locator("img[src^='blob:'], img[src*='flops_per_stage']").first).to_be_visible()


def test_printed_link_opens_the_charts_with_a_bar_for_each_run(logged, visit):
    page = visit(logged.links[0])
    page.get_by_placeholder("Search metric charts").fill("^flops/total$")
    expect(heading_of(page, "flops")).to_contain_text("(1)")
    # Their values stand on the bars.
    for total in ("934261104640", "1980143673344", "4889973260288"):
        expect(page.get_by_text(total).first).to_be_visible()
    for mode in MODES:
        expect(page.get_by_role("row").filter(has_text=mode).first).to_be_visible()


def test_runs_are_compared_with_what_differs_marked(logged, visit):
    runs = urllib.parse.quote(json.dumps([logged.statics[mode] for mode in MODES]))
    experiments = urllib.parse.quote(json.dumps([logged.experiments["seen-counts"]]))
    page = visit(f"{logged.address}/#/compare-runs?runs={runs}&experiments={experiments}")
    expect(page.get_by_text("Comparing 3 Runs from 1 Experiment")).to_be_visible()
    row = page.get_by_role("row").filter(has=page.get_by_text("prompt_tokens", exact=True)).first
    for tokens in ("83", "283", "913"):
        expect(row).to_contain_text(tokens)
    same = page.get_by_text("dtype", exact=True).first
    expect(same).to_be_visible()
    page.get_by_role("switch").first.click()
    # What is the same in all of them goes, what differs stays.
    expect(same).to_be_hidden()
    expect(row).to_be_visible()


def test_paired_profile_shows_its_utilization_and_links_to_its_counts(logged, visit):
    page = visit(logged.page("seen-profiles", logged.profile), viewport=LAPTOP)
    headline, table, more = description(page)
    expect(headline).to_contain_text("of the whole request")
    require_shown(page, table, more, ("Stage", "Time", "MFU"))
    more.click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="base", exact=True).click()
    expect(opened.value).to_have_url(logged.page("seen-counts", logged.statics["base"]))
    expect(opened.value.get_by_role("heading", name="base")).to_be_visible()


def test_profile_has_charts_of_mfu_and_a_page_of_its_roofline(logged, visit):
    page = visit(logged.page("seen-profiles", logged.profile, "model-metrics"))
    page.get_by_placeholder("Search metric charts").fill("^mfu/")
    expect(heading_of(page, "mfu")).to_contain_text("(7)")
    page = visit(logged.page("seen-profiles", logged.profile, "artifacts"))
    page.get_by_text("roofline.html", exact=True).click()
    expect(page.frame_locator("iframe").get_by_text("ceiling", exact=True).first).to_be_visible()


def test_comparison_shows_its_table_and_links_to_its_parts(logged, visit):
    page = visit(logged.page("stagemeter/comparisons", logged.comparison), viewport=LAPTOP)
    headline, table, more = description(page)
    expect(headline).to_have_text("flops, against base: gundam 2.470 x.")
    require_shown(page, table, more, ("stage", "base", "gundam"))
    more.click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="gundam", exact=True).click()
    expect(opened.value).to_have_url(logged.page("seen-counts", logged.statics["gundam"]))


def test_sweep_expands_to_its_children(logged, visit):
    page = visit(
        f"{logged.address}/#/experiments/{logged.experiments['seen-sweeps']}/runs?workflowType=machine_learning"
    )
    expect(page.get_by_text("modes", exact=True)).to_be_visible()
    child = page.get_by_text("base 283 + 100 tokens, batch", exact=False)
    expect(child).to_have_count(0)
    row = page.get_by_role("row").filter(has=page.get_by_text("modes", exact=True))
    row.get_by_role("button").first.click()
    expect(child.first).to_be_visible()
    page = visit(logged.page("seen-sweeps", logged.sweep))
    expect(page.get_by_text("12 workloads.")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_a_comparison_follows_the_reader_and_sorts(logged, visit, browser, tmp_path, scheme):
    import mlflow

    file = mlflow.artifacts.download_artifacts(
        run_id=logged.comparison, artifact_path="comparison.html", dst_path=str(tmp_path), tracking_uri=logged.address
    )
    page = visit(Path(file).as_uri(), color_scheme=scheme, offline=True)
    page.locator("svg").first.wait_for()
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
    text = page.locator("svg g[id^=xtick] text").first
    assert text.evaluate("node => getComputedStyle(node).fill") == (
        "rgb(31, 35, 40)" if scheme == "light" else "rgb(230, 237, 243)"
    )
    first = page.locator("table.sortable tbody tr").first.locator("td").first
    expect(first).to_have_text("sam")
    page.get_by_role("button", name="base").click()
    expect(first).to_have_text("total")
    page.get_by_role("button", name="base").click()
    expect(first).to_have_text("decode")
