"""``stagemeter profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stagemeter.cli.output import print_profiled, run_options, say, say_options
from stagemeter.cli.types import NUMBER, TEXT
from stagemeter.cli.workload import workload_options, workload_settings

_EPILOG = """\b
Examples:
  stagemeter profile --scale small                     a reduced model, in seconds
  stagemeter profile --mode tiny --new-tokens 4        the full model with random weights
  stagemeter profile --weights /path/to/DeepSeek-OCR --device cuda:0 --repeats 10
Then pair it with its counts:
  stagemeter mfu --profile-run RUN
"""


@click.command(epilog=_EPILOG)
@workload_options
@click.option("--device", type=TEXT, help="Where to run: cpu, cuda:0, ... [auto: a GPU where there is one]")
@click.option("--warmup", type=NUMBER, help="Requests that are run first and not counted. [1]")
@click.option("--repeats", type=NUMBER, help="Requests that are measured. [3]")
@click.option("--weights", type=TEXT, help="random (default), or the folder of a checkpoint.")
@click.option(
    "--trace",
    # Not the optional kind: `none` is a value here.
    type=click.Choice(["torch", "none"]),
    help="Whether to trace one more request with torch's profiler. [torch]",
)
@run_options
@say_options
def profile(
    config_file: Path | None, experiment: str | None, run_name: str | None, as_json: bool, **options: Any
) -> None:
    """Run a page for real, take the time of each stage, and log it to MLflow.

    The times pair with the counts of `stagemeter analyze` through `stagemeter mfu`.
    """
    from stagemeter.analysis.config import ProfileConfig, load_config

    config = load_config(config_file, workload_settings(**options), ProfileConfig)
    if not config.enabled:
        say("enabled is false in the configuration: nothing to do")
        return
    from stagemeter.application.profile import profile_page

    print_profiled(profile_page(config, experiment=experiment, run_name=run_name), as_json)
