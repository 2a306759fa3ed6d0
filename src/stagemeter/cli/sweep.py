"""``stagemeter sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import corpus_options, log_options, no_track_option, output_options, run_options
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import MODEL, PATH, TEXT, once
from stagemeter.cli.workload import SEVERAL_VALUES, swept_options
from stagemeter.core.errors import StagemeterError, exclusive

if TYPE_CHECKING:
    from stagemeter.application.sweep import Swept
    from stagemeter.sweeping.build import SweepSettings

_EPILOG = """\b
Examples:
  stagemeter sweep --mode tiny,base,gundam --batch-size 1,2,4,8 --new-tokens 256..4096:256
  stagemeter sweep --page-size 1240x1754,2480x3508 --device A100-80GB,H100-SXM --output pages.parquet
  stagemeter sweep --images scans/ --mode base,gundam           a corpus: its pages, each in each mode
  stagemeter sweep --pages sizes.csv --new-tokens 1..2048       width,height[,page]
  stagemeter sweep llama-3.1-8b qwen3-8b --requests log.csv        a whole log a row
  stagemeter sweep --grid grid.yaml --resume
Commas separate values; first..last:step is a range that includes both ends.
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.argument("models", nargs=-1, type=MODEL, metavar="[MODEL]...")
@click.option("--grid", "grid_file", metavar="FILE", type=PATH, help="YAML file of settings; options win over it.")
@swept_options
@corpus_options(TEXT)
@log_options("a row has its costs in all")
@once(
    "--device",
    metavar="NAME[,...]",
    type=TEXT,
    instead=SEVERAL_VALUES,
    help="Devices to bound the time on, see `stagemeter devices`. [none]",
)
@click.option(
    "--output",
    metavar="FILE",
    type=PATH,
    default=Path("sweep.parquet"),
    show_default=True,
    help="Parquet file to write; it replaces an older one.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted sweep.")
@click.option("--estimate", is_flag=True, help="Use closed forms alone: do not count each model once.")
@click.option(
    "--backend",
    metavar="NAME",
    type=TEXT,
    default="loky",
    help="Engine: loky (this machine), dask, ray or spark. [loky]",
)
@click.option("--jobs", metavar="N", type=int, default=-1, help="Number of workers. [the number of cores]")
@click.option(
    "--cluster",
    metavar="ADDRESS",
    type=TEXT,
    help="Address of the cluster. [the engine's own variable, or a local one]",
)
@click.option(
    "--child-runs", metavar="ROWS", type=TEXT, help="Rows to log as child runs: all, pareto or a number. [none]"
)
@run_options
@no_track_option
@output_options
def sweep(
    models: tuple[str, ...],
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
    requests: Path | None,
    skip_bad: bool,
    **options: Any,
) -> None:
    """Tabulate the cost of every combination of settings, one workload a row.

    Each MODEL is counted once in full. Its closed form gives the rows, equal to an analysis of each to the integer.
    With --requests, a row is a whole log, and models, modes, data types, pages and their limits can vary.
    """
    from stagemeter.application.sweep import sweep as evaluate
    from stagemeter.application.sweep import sweep_and_log
    from stagemeter.sweeping.build import SweepSettings, read_settings, with_overrides

    if models:
        exclusive(MODEL=models[0], model=options["model"])
        options["model"] = ",".join(models)
    settings = with_overrides(SweepSettings() if grid_file is None else read_settings(grid_file), options)
    target = output or Path("sweep.parquet")
    if requests is not None:
        beside = {
            "--resume": resume,
            "--estimate": estimate,
            "--backend": backend != "loky",
            "--jobs": jobs != -1,
            "--cluster": cluster,
            "--child-runs": child_runs,
        }
        for option, value in beside.items():
            if value:
                raise StagemeterError(f"{option}: a sweep of a log takes no such option. Leave it out")
        where = None if no_track else {"experiment": experiment, "run_name": run_name}
        _sweep_requests(settings, requests, target, skip_bad, as_json, where)
        return
    how: dict[str, Any] = {
        "resume": resume,
        "estimate": estimate,
        "backend": backend or "loky",
        "jobs": jobs,
        "cluster": cluster,
    }
    if no_track and child_runs is not None:
        raise StagemeterError(f"--child-runs: --no-track logs no run to hold {child_runs}. Leave one of them out")
    try:
        if no_track:
            swept = evaluate(settings, target, **how)
        else:
            run = {"child_runs": child_runs, "experiment": experiment, "run_name": run_name}
            swept = sweep_and_log(settings, target, **run, **how)
    except KeyboardInterrupt:
        say(f"finished parts are kept in {target}.parts: repeat the command with --resume to continue")
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


def _sweep_requests(
    settings: SweepSettings, log: Path, target: Path, skip_bad: bool, as_json: bool, where: dict[str, Any] | None
) -> None:
    """Print the table of a log, and log it unless `where` is None."""
    from stagemeter.application.sweep_requests import sweep_requests, sweep_requests_and_log
    from stagemeter.core.terminal import print_lines, print_table
    from stagemeter.export.requests import swept_rows

    if where is None:
        swept = sweep_requests(settings, log, target, skip_bad)
    else:
        swept = sweep_requests_and_log(settings, log, target, skip_bad, **where)
    if as_json:
        print_json(
            {
                "run_id": swept.run_id,
                "output": str(swept.output),
                "log": swept.log,
                "rows": swept.rows,
                "notes": list(swept.notes),
            }
        )
    else:
        print_table(swept_rows(swept.rows), title=f"{log.name}, in {swept.output}")
        print_lines([f"note: {note}" for note in swept.notes])
    for line in swept.messages:
        say(line)


def _say(swept: Swept) -> None:
    from stagemeter.core.terminal import print_lines

    per_second = swept.evaluated / swept.seconds
    plural = "" if swept.rows == 1 else "s"
    lines = [
        f"{swept.rows:,} workload{plural} in {swept.output}; {swept.evaluated:,} in {swept.seconds:.3g} s, "
        f"{per_second:,.0f} a second"
    ]
    print_lines([*lines, *(f"note: {note}" for note in swept.notes)])
