"""Make the pictures of the README and of docs/, in a real browser: of a real MLflow server and its runs.

Needed beside the package, on Debian::

    apt-get install chromium
    pip install playwright

Playwright's own browsers are not needed: Debian's Chromium is driven. Then, from anywhere::

    python docs/pictures.py

The full model runs on this machine with random weights, in three modes. That takes about four minutes on two cores and
8 GB of memory; ``--scale small`` runs a reduced model, to try the script out, and ``--only counts`` leaves it out.
Everything but the pictures goes into a temporary folder.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

PARTS = ("counts", "profiles", "comparison", "sweep")
#: Experiments of the static runs and of the profiling runs: apart, so that charts show what can be compared.
COUNTS, PROFILES = "counts", "profiles"
#: The modes that are profiled; the page of the last is shown.
PROFILED = ("tiny", "small", "base")
NEW_TOKENS = 16
#: The modes whose counts stand side by side.
COUNTED = ("tiny", "small", "base", "large", "gundam")
#: The modes that are compared.
COMPARED = ("base", "gundam")
#: What is swept, and the figures of it that are shown.
GRID = ("--mode", ",".join(COUNTED), "--batch-size", "1,2,4,8,16", "--new-tokens", "256..4096:256")
GRID += ("--device", "A100-80GB,H100-SXM")
SWEEP_FIGURES = ("cost_by_resolution", "pages_per_hour")
#: Colours of the runs. MLflow's own follow from the run's id, and two runs can get the same.
COLOURS = ("#2f6f9f", "#d1495b", "#66a182", "#edae49", "#8d6a9f")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: Of the window, in pixels: as high as the longest page, since pages scroll inside of it.
WIDTH, HEIGHT = 1280, 2400
#: Width of what MLflow shows on the left on every page, and height of a chart from its name on.
SIDEBAR, CHART_HEIGHT = 190, 355
PATIENCE_MS = 60_000
LARGEST = 300_000


@click.command()
@click.option("--chromium", help="Chromium or Chrome. [the one on PATH]")
@click.option("--scale", type=click.Choice(["full", "small"]), default="full", show_default=True, help="The model.")
@click.option(
    "--only", type=click.Choice(PARTS), multiple=True, default=PARTS, help="Which pictures; can be repeated. [all]"
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "images",
    help="Folder for the pictures. [docs/images]",
)
def main(chromium: str | None, scale: str, only: tuple[str, ...], output: Path) -> None:
    """Make the pictures of the README and of docs/."""
    chromium = chromium or next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None or shutil.which(chromium) is None:
        raise click.ClickException("there is no Chromium: `apt-get install chromium`, or name one with --chromium")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise click.ClickException("there is no Playwright: `pip install playwright`, without its browsers") from None
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, mlflow_server(Path(temporary)) as address:
        store = Store(address, Path(temporary))
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium)
                if "counts" in only:
                    picture_counts(browser, store, output)
                if "profiles" in only:
                    picture_profiles(browser, store, output, scale)
                if "comparison" in only:
                    picture_comparison(browser, store, output)
                if "sweep" in only:
                    picture_sweep(browser, store, output)
                browser.close()
        except Error as error:
            raise click.ClickException(f"MLflow's page is not as this script knows it: {error.message}") from None


@dataclass(frozen=True)
class Store:
    """A running server, and a folder for everything that commands write."""

    address: str
    folder: Path

    def stagemeter(self, *arguments: str) -> dict[str, Any]:
        """Run a command and return what it says with --json."""
        click.echo(f"stagemeter {' '.join(arguments)}", err=True)
        done = subprocess.run(
            # Not as a module: the page of a run names the program that logged it.
            [Path(sys.executable).with_name("stagemeter"), *arguments, "--json"],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": self.address},
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise click.ClickException(f"`stagemeter {arguments[0]}` failed, see above")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def runs(self, experiment: str) -> str:
        """Address of an experiment's runs."""
        query = urllib.parse.urlencode({"experiment_name": experiment})
        with urllib.request.urlopen(f"{self.address}/api/2.0/mlflow/experiments/get-by-name?{query}") as answer:
            return f"{self.address}/#/experiments/{json.load(answer)['experiment']['experiment_id']}/runs"

    def artifact(self, run: str, path: str) -> bytes:
        """What a file of a run contains."""
        query = urllib.parse.urlencode({"path": path, "run_uuid": run})
        with urllib.request.urlopen(f"{self.address}/get-artifact?{query}") as answer:
            content: bytes = answer.read()
            return content


def picture_counts(browser: Any, store: Store, folder: Path) -> None:
    """Take the charts of the counts of every mode, side by side."""
    for mode in COUNTED:
        store.stagemeter("analyze", "--estimate", "--mode", mode, "--experiment", COUNTS, "--run-name", mode)
    take_charts(
        browser,
        store.runs(COUNTS),
        COUNTED,
        "^flops/(sam|clip|projector|prefill|decode_total|total)$",
        "flops/total",
        folder / "mlflow_charts.png",
    )


def picture_profiles(browser: Any, store: Store, folder: Path, scale: str) -> None:
    """Take a profiling run's page, its roofline, and the charts of some of them."""
    runs = []
    for mode in PROFILED:
        workload = ("--scale", scale, "--mode", mode, "--new-tokens", str(NEW_TOKENS))
        store.stagemeter("analyze", *workload, "--experiment", "profiled")
        profile = ("profile", *workload, "--experiment", PROFILES, "--run-name", mode, "--trace", "none")
        runs.append(store.stagemeter(*profile)["run_id"])
    store.stagemeter("mfu", "--experiment", PROFILES, "--device", "measured", "--figures")
    address = store.runs(PROFILES)
    take_run(browser, f"{address}/{runs[-1]}", "Counts:", folder / "mlflow_paired_run.png")
    shown = "^(mfu/|time_ms/(prefill|decode|total)$)"
    take_charts(browser, address, PROFILED, shown, "time_ms/total", folder / "mlflow_mfu_charts.png")
    save(store.artifact(runs[-1], "roofline.png"), folder / "roofline.png")


def picture_comparison(browser: Any, store: Store, folder: Path) -> None:
    """Compare the reports of two modes, as docs/comparing.md does; take the page."""
    for mode in COMPARED:
        store.stagemeter("analyze", "--estimate", "--no-track", "--mode", mode, "--output", mode)
    reports = [f"{mode}/static_compute.json" for mode in COMPARED]
    store.stagemeter("compare", *reports, "--output", "comparison")
    take_comparison(browser, store.folder / "comparison" / "comparison.html", folder / "comparison.png")


def picture_sweep(browser: Any, store: Store, folder: Path) -> None:
    """Take the page of a sweep and one of its figures."""
    options = ("--estimate", "--output", "grid.parquet", "--experiment", "sweeps", "--run-name", "modes and batches")
    run = store.stagemeter("sweep", *GRID, *options)["run_id"]
    take_run(browser, f"{store.runs('sweeps')}/{run}", "workloads.", folder / "mlflow_sweep.png")
    for name in SWEEP_FIGURES:
        save(store.artifact(run, f"{name}.png"), folder / f"sweep_{name}.png")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run an MLflow server on a free port of this machine with a store in a folder; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    # Background jobs, which nothing here needs, take longer to start than the server.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    log = folder / "server.log"
    with log.open("w") as stream:
        # A process group of its own: the server starts workers, and all of them are to be ended.
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health", server, log)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"the MLflow server did not start:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.5)


def take_comparison(browser: Any, file: Path, path: Path) -> None:
    """Take the page of a comparison down to its table."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(file.as_uri())
    page.locator("svg").first.wait_for()
    table = page.locator("table.sortable").bounding_box()
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": table["y"] + table["height"] + 20}
    save(page.screenshot(clip=clip), path)


def take_run(browser: Any, address: str, seen: str, path: Path) -> None:
    """Take the page of a run as far as its description goes."""
    # The plain address opens a view of MLflow 3 that is made for evaluations.
    page = open_page(browser, f"{address}?workflowType=machine_learning")
    page.get_by_text("Show more", exact=True).click()
    page.get_by_text(seen).wait_for()
    save(take(page, page.get_by_text("Show less", exact=True).bounding_box()["y"]), path)


def take_charts(browser: Any, runs: str, names: tuple[str, ...], shown: str, last: str, path: Path) -> None:
    """Take the charts of an experiment's runs: those that MLflow's search box finds, the last of which is given."""
    page = open_page(browser, f"{runs}?workflowType=machine_learning&compareRunsMode=CHART")
    for colour, name in zip(COLOURS, names, strict=False):
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
        row.locator("input[type=color]").fill(colour, force=True)
    page.get_by_placeholder("Search metric charts").fill(shown)
    chart = page.get_by_text(last, exact=True)
    chart.wait_for()
    # Drawn one by one, with nothing that says when the last is done.
    page.wait_for_timeout(5000)
    save(take(page, chart.bounding_box()["y"] + CHART_HEIGHT), path)


def take(page: Any, height: float) -> bytes:
    """Take the upper part of a page, without what stands beside it."""
    clip = {"x": SIDEBAR, "y": 0, "width": WIDTH - SIDEBAR, "height": height}
    picture: bytes = page.screenshot(clip=clip)
    return picture


def open_page(browser: Any, address: str) -> Any:
    """Open a page of MLflow as on a first visit, and put away the assistant that covers a fifth of it."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.get_by_role("button", name="Close", exact=True).click()
    return page


def save(png: bytes, path: Path) -> None:
    """Write a picture with a palette of its own, which is enough for a page of text."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(stream, format="PNG", optimize=True)
    if stream.tell() > LARGEST:
        raise click.ClickException(f"{path.name} has {stream.tell():,} bytes, more than {LARGEST:,}")
    path.write_bytes(stream.getvalue())
    click.echo(f"{path}: {stream.tell():,} bytes", err=True)


if __name__ == "__main__":
    main()
