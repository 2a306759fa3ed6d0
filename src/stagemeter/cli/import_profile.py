"""``stagemeter import-profile``."""

from __future__ import annotations

from typing import Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import devices_option, output_options, run_options
from stagemeter.cli.output import print_profiled
from stagemeter.cli.types import DEVICE, FRACTION, NUMBER, PATH, TEXT
from stagemeter.cli.workload import read_config, workload_options

_EPILOG = """\b
Examples:
  stagemeter import-profile trace.json.gz                          torch's profiler
  stagemeter import-profile report.sqlite --map prefill='llm*'     nsys export --type sqlite
  stagemeter import-profile ranges.csv                             nsys stats --report nvtx_gpu_proj_sum
  stagemeter import-profile times.csv --mode base --batch-size 8   stage,time_ms[,repeat]
  stagemeter import-profile http://localhost:8000/metrics --interval 60
  stagemeter import-profile before.txt after.txt --interval 60     two scrapes that were saved
  stagemeter import-profile before.txt after.txt --interval 60 --requests log.csv
  stagemeter import-profile --from-run RUN --map prefill=my/metric
"""


@click.command(name="import-profile", cls=Command, epilog=_EPILOG)
@click.argument("source", nargs=-1)
@click.option(
    "--from-run", metavar="RUN", type=TEXT, help="MLflow run, by id or name, that holds the times as metrics."
)
@click.option(
    "--map",
    "pairs",
    metavar="STAGE=PATTERN",
    multiple=True,
    help="stage=PATTERN, or stage=METRIC with --from-run. Can be repeated.",
)
@click.option(
    "--mapping", "mapping_file", metavar="FILE", type=PATH, help="YAML file of the form `stage: [pattern, ...]`."
)
@click.option("--interval", metavar="SECONDS", type=FRACTION, help="Seconds between two scrapes.")
@click.option(
    "--engine-model", metavar="NAME", type=TEXT, help="model_name of the serving engine to read, if it has several."
)
@click.option(
    "--request-count",
    metavar="N",
    type=NUMBER,
    help="Requests that finished between two scrapes of an engine that does not count them, as llama.cpp.",
)
@click.option(
    "--requests",
    metavar="FILE",
    type=PATH,
    help="Log of the requests that finished between two scrapes, in CSV, JSON Lines or Parquet: FLOPs are exact.",
)
@click.option(
    "--prefill-contains-vision/--prefill-without-vision",
    default=None,
    help="Whether the vision stages ran inside the prefill range, for summaries without timestamps.",
)
@click.option(
    "--device",
    metavar="NAME",
    type=DEVICE,
    help="Device that it ran on, one of `stagemeter devices`. [what the source names]",
)
@devices_option
@workload_options("import-profile")
@run_options
@output_options
def import_profile(
    source: tuple[str, ...],
    experiment: str | None,
    run_name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Log the times that another tool measured as a profiling run.

    SOURCE is a trace, an export or a table of times, two scrapes of a serving engine's metrics, or their address. The
    options of `analyze` say what was measured.
    """
    from stagemeter.analysis.config import AnalysisConfig

    config = read_config(AnalysisConfig, options)
    from stagemeter.application.import_profile import Source
    from stagemeter.application.import_profile import import_profile as run

    where = Source(files=source, **options)
    print_profiled(run(config, where, experiment=experiment, run_name=run_name), as_json)
