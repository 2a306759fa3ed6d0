"""``stagemeter sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stagemeter.cli.output import print_json, run_options, say, say_options
from stagemeter.cli.types import PATH, TEXT, once
from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    from stagemeter.application.sweep import Swept

_EPILOG = """\b
Examples:
  stagemeter sweep --mode tiny,base,gundam --batch-size 1,2,4,8 --new-tokens 256..4096:256
  stagemeter sweep --page-size 1240x1754,2480x3508 --device A100-80GB,H100-SXM --output pages.parquet
  stagemeter sweep --images scans/ --mode base,gundam           a corpus: its pages, each in each mode
  stagemeter sweep --pages sizes.csv --new-tokens 1..2048       width,height[,page]
  stagemeter sweep --grid grid.yaml --resume
Values stand between commas; first..last:step is a range with both ends.
"""


#: What to do for several values.
_COMMAS, _ONE_FOLDER = "write several values between commas", "pictures of all folders below it are taken"


@click.command(epilog=_EPILOG)
@click.option("--grid", "grid_file", type=PATH, help="YAML file of the settings below; options given here win over it.")
@once("--model", type=TEXT, instead=_COMMAS, help="Models. [deepseek-ocr]")
@once("--mode", type=TEXT, instead=_COMMAS, help="Modes. [gundam]")
@once("--page-size", type=TEXT, instead=_COMMAS, help="Page sizes in pixels. [1654x2339]")
@once("--images", type=TEXT, instead=_ONE_FOLDER, help="Folder of pictures, whose sizes are the pages.")
@once(
    "--pages",
    type=TEXT,
    instead=_ONE_FOLDER,
    help="CSV of page sizes with the columns width, height and, if named, page.",
)
@click.option("--min-pixels", type=TEXT, help="Pixels to which smaller pages are resized. [the processor's]")
@click.option("--max-pixels", type=TEXT, help="Pixels to which larger pages are resized. [the processor's]")
@click.option("--max-tiles", type=TEXT, help="Tiles of a page at most. [the processor's; DeepSeek-OCR: 9]")
@once("--batch-size", type=TEXT, instead=_COMMAS, help="Pages at once. [1]")
@once("--text-tokens", type=TEXT, instead=_COMMAS, help="Tokens of the prompt besides the page's. [10]")
@once("--new-tokens", type=TEXT, instead=_COMMAS, help="Tokens to generate. [512]")
@once("--dtype", type=TEXT, instead=_COMMAS, help="Data types. [bfloat16]")
@once("--device", type=TEXT, instead=_COMMAS, help="Devices to work out bounds for, see `stagemeter devices`. [none]")
@click.option("--seq-len", type=TEXT, help="Length at which to look at the language model, one for all. [the prompt's]")
@click.option("--decode-context", type=TEXT, help="Tokens that the reported decode step attends to. [auto]")
@click.option("--output", type=PATH, default=Path("sweep.parquet"), show_default=True, help="The table.")
@click.option("--resume", is_flag=True, help="Go on with a sweep that was interrupted.")
@click.option("--estimate", is_flag=True, help="Take the closed forms without counting each model once.")
@click.option("--backend", type=TEXT, default="loky", help="loky (this machine), dask, ray or spark. [loky]")
@click.option("--jobs", type=int, default=-1, help="Workers. [as many as there are cores]")
@click.option(
    "--cluster", type=TEXT, help="Address of the cluster. [the engine's own variable, or one of this machine]"
)
@click.option("--child-runs", type=TEXT, help="Rows that become runs of their own: all, pareto, or how many. [none]")
@run_options
@click.option("--no-track", is_flag=True, help="Do not log to MLflow.")
@say_options
def sweep(
    grid_file: Path | None,
    output: Path | None,
    resume: bool,
    estimate: bool,
    backend: str | None,
    jobs: int,
    cluster: str | None,
    child_runs: str | None,
    experiment: str | None,
    run_name: str | None,
    no_track: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Work out what every combination of some settings costs, as a table: a row for each workload.

    Each model is counted once in full; the rest is its closed form, equal to an analysis of each row to the integer.
    """
    from stagemeter.application.sweep import sweep as evaluate
    from stagemeter.application.sweep import sweep_and_log
    from stagemeter.sweeping.build import SweepSettings, read_settings, with_overrides

    settings = with_overrides(SweepSettings() if grid_file is None else read_settings(grid_file), options)
    target = output or Path("sweep.parquet")
    how: dict[str, Any] = {
        "resume": resume,
        "estimate": estimate,
        "backend": backend or "loky",
        "jobs": jobs,
        "cluster": cluster,
    }
    if no_track and child_runs is not None:
        raise StagemeterError(f"--child-runs {child_runs} and --no-track exclude each other: leave one of them out")
    try:
        if no_track:
            swept = evaluate(settings, target, **how)
        else:
            run = {"child_runs": child_runs, "experiment": experiment, "run_name": run_name}
            swept = sweep_and_log(settings, target, **run, **how)
    except KeyboardInterrupt:
        say(f"what is done is kept in {target}.parts: the same command with --resume goes on")
        raise
    if as_json:
        print_json(
            {
                "run_id": swept.run_id,
                "output": str(swept.output),
                "rows": swept.rows,
                "evaluated": swept.evaluated,
                "seconds": swept.seconds,
                "notes": list(swept.notes),
            }
        )
    else:
        _say(swept)
    for line in swept.messages:
        say(line)


def _say(swept: Swept) -> None:
    from stagemeter.core.terminal import print_lines

    per_second = swept.evaluated / swept.seconds
    lines = [
        f"{swept.rows:,} workloads in {swept.output}; {swept.evaluated:,} in {swept.seconds:.3g} s, "
        f"{per_second:,.0f} a second"
    ]
    print_lines([*lines, *(f"note: {note}" for note in swept.notes)])
