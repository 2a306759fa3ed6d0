"""``stagemeter upload``."""

from __future__ import annotations

from pathlib import Path

import click

from stagemeter.cli.output import print_json, say_options, store_options
from stagemeter.cli.types import TEXT, OutsidePath

_EPILOG = """\b
Examples:
  stagemeter upload stagemeter-report                  what `analyze --no-track` wrote
  stagemeter upload reports/ --experiment offline      all reports in a folder and below it
"""


@click.command(epilog=_EPILOG)
@click.argument("paths", nargs=-1, type=OutsidePath())
@click.option("--experiment", type=TEXT, help="MLflow experiment. [MLflow's own choice]")
@store_options
@say_options
def upload(paths: tuple[Path, ...], experiment: str | None, as_json: bool) -> None:
    """Bring reports that were made without a store into MLflow, each once, however often it is tried."""
    from stagemeter.application.upload import upload as run

    uploaded = run(paths, experiment)
    if as_json:
        reports = [{"path": str(one.path), "run_id": one.run_id, "new": one.new} for one in uploaded]
        print_json({"reports": reports})
        return
    from stagemeter.core.terminal import print_lines

    print_lines(f"{one.path}: {'logged as' if one.new else 'is there already,'} run {one.run_id}" for one in uploaded)
