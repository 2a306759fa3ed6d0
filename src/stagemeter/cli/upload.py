"""``stagemeter upload``."""

from __future__ import annotations

from pathlib import Path

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import output_options, store_options
from stagemeter.cli.output import print_json
from stagemeter.cli.types import TEXT, OutsidePath

_EPILOG = """\b
Examples:
  stagemeter upload stagemeter-report                  what `analyze --no-track` wrote
  stagemeter upload reports/ --experiment offline      all reports in a folder and below it
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.argument("paths", nargs=-1, type=OutsidePath())
@click.option("--experiment", metavar="NAME", type=TEXT, help="MLflow experiment. [MLflow's default]")
@store_options
@output_options
def upload(paths: tuple[Path, ...], experiment: str | None, as_json: bool) -> None:
    """Log to MLflow the reports that were made without a store, each once.

    PATHS are reports, or folders that hold them. A report that was logged before is left alone.
    """
    from stagemeter.application.upload import upload as run

    uploaded = run(paths, experiment)
    if as_json:
        reports = [{"path": str(one.path), "run_id": one.run_id, "new": one.new} for one in uploaded]
        print_json({"reports": reports})
        return
    from stagemeter.core.terminal import print_lines

    print_lines(f"{one.path}: {'logged as' if one.new else 'is there already,'} run {one.run_id}" for one in uploaded)
