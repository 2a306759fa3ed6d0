"""``stagemeter watch``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import devices_option, output_options, peak_options, run_options
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import PATH, TEXT, Duration, Optional
from stagemeter.cli.workload import read_config, workload_options
from stagemeter.core.escape import printable
from stagemeter.core.progress import end_line

_EPILOG = """\b
Examples:
  stagemeter watch http://localhost:8000/metrics --model llama-3.1-8b --device H100-SXM
  stagemeter watch http://one:8000/metrics http://two:8000/metrics --for 8h --every 1m ...
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.argument("urls", nargs=-1, required=True)
@click.option(
    "--every", type=Optional(Duration()), default="15s", help="Time between two pages, such as 15, 90s or 2m. [15s]"
)
@click.option("--for", "lasts", type=Optional(Duration()), help="Time after which the watch ends. [until Ctrl-C]")
@click.option(
    "--engine-model", metavar="NAME", type=TEXT, help="model_name of the serving engine to read, if it has several."
)
@peak_options("Device with the peak, one of `stagemeter devices`.")
@devices_option
@click.option(
    "--requests",
    metavar="FILE",
    type=PATH,
    help="Log of the requests that finish meanwhile, as `import-profile` takes it. It is read at the end: FLOPs of the "
    "whole time are exact.",
)
@workload_options("watch")
@run_options
@output_options
def watch(
    urls: tuple[str, ...], experiment: str | None, run_name: str | None, as_json: bool, every: float, **options: Any
) -> None:
    """Log the utilization of live serving engines as time series of one MLflow run.

    URLS are the /metrics of servers of one model, which are added up. Ctrl-C ends the watch.
    """
    from stagemeter.analysis.config import AnalysisConfig

    config = read_config(AnalysisConfig, options)
    from stagemeter.application.watch import Asked
    from stagemeter.application.watch import watch as run
    from stagemeter.export.watch import interval_header, interval_line

    # What MLflow prints meanwhile is redirected.
    lines = sys.stderr if as_json else sys.stdout

    def show(interval: Mapping[str, Any]) -> None:
        end_line()
        if interval["number"] == 0:
            click.echo(interval_header(), file=lines)
        click.echo(printable(interval_line(interval)), file=lines)

    watched = run(
        config,
        Asked(urls=urls, every=every, **options),
        show,
        say,
        experiment,
        run_name,
    )
    if as_json:
        print_json(asdict(watched))
    elif watched.pairing is not None:
        from stagemeter.export.pairing import print_pairing

        print_pairing(watched.pairing)
    for line in watched.messages:
        say(line)
