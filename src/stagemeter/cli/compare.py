"""``stagemeter compare``."""

from __future__ import annotations

from pathlib import Path

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import output_options, store_options
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import PATH, TEXT
from stagemeter.core.metrics import COMPARED

#: Exit code of a limit that is exceeded.
OVER_THE_LIMIT = 1
_EPILOG = """\b
Examples:
  stagemeter compare RUN RUN                       ids, unique beginnings of ids, or names
  stagemeter compare --experiment NAME --filter "params.mode = 'tiny'" --metric bytes
  stagemeter compare old.json new.json --max-increase total/flops=1% --max-increase decode/bytes=0%
  stagemeter compare RUN RUN --output comparison --log
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.argument("runs", nargs=-1)
@click.option("--baseline", metavar="RUN", type=TEXT, help="Run to compare the others with. [the first]")
@click.option(
    "--metric",
    "quantities",
    metavar="NAME",
    multiple=True,
    help=f"Quantity to compare: {', '.join(COMPARED)}. Can be repeated. [flops; of profiles time_ms]",
)
@click.option("--experiment", metavar="NAME", type=TEXT, help="Compare the runs of this experiment.")
@click.option(
    "--filter", "condition", metavar="FILTER", type=TEXT, help="MLflow filter for the runs of the experiment."
)
@click.option(
    "--max-increase",
    "increases",
    multiple=True,
    metavar="STAGE/METRIC=X%",
    help="Exit with code 1 if a value grows by more than this. Can be repeated.",
)
@click.option(
    "--max-decrease",
    "decreases",
    multiple=True,
    metavar="STAGE/METRIC=X%",
    help="Exit with code 1 if a value falls by more than this, such as total/mfu=5%. Can be repeated.",
)
@click.option(
    "--output",
    "output_dir",
    metavar="FOLDER",
    type=PATH,
    help="Folder for the comparison as JSON, Markdown, CSV and HTML. [none]",
)
@click.option("--log", is_flag=True, help="Log the comparison as an MLflow run.")
@click.option("--run-name", metavar="NAME", type=TEXT, help="Name of that run.")
@store_options
@output_options
def compare(
    runs: tuple[str, ...],
    baseline: str | None,
    quantities: tuple[str, ...],
    experiment: str | None,
    condition: str | None,
    increases: tuple[str, ...],
    decreases: tuple[str, ...],
    output_dir: Path | None,
    log: bool,
    run_name: str | None,
    as_json: bool,
) -> int:
    """Compare runs stage by stage: what changed, by how much, and what else differs.

    RUNS are MLflow runs by id, by the unique beginning of an id, or by name; or files: static_compute.json or
    profile.json.
    """
    from stagemeter.application.compare import compare_and_log
    from stagemeter.comparing.limits import parse_limit

    compared = compare_and_log(
        runs,
        baseline=baseline,
        quantities=[name for name in quantities if name != "none"],
        experiment=experiment,
        condition=condition,
        limits=[*(parse_limit(text) for text in increases), *(parse_limit(text, increase=False) for text in decreases)],
        folder=output_dir,
        log=log,
        run_name=run_name,
    )
    if as_json:
        print_json({**compared.comparison, "breaches": compared.breaches})
    else:
        from stagemeter.export.comparison import print_comparison

        print_comparison(compared.comparison)
    for line in compared.messages:
        say(line)
    for line in compared.breaches:
        say(f"over the limit: {line}")
    return OVER_THE_LIMIT if compared.breaches else 0
