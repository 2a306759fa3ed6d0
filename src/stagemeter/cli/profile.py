"""``stagemeter profile``."""

from __future__ import annotations

from typing import Any

import click

from stagemeter.cli.output import print_profiled, run_options, say, say_options
from stagemeter.cli.workload import measuring_options, read_config, workload_options

_EPILOG = """\b
Examples:
  stagemeter profile --scale small                     a reduced model, in seconds
  stagemeter profile --mode tiny --new-tokens 4        the full model with random weights
  stagemeter profile --weights /path/to/DeepSeek-OCR --device cuda:0 --repeats 10
Then pair it with its counts:
  stagemeter mfu --profile-run RUN
"""


@click.command(epilog=_EPILOG)
@workload_options("profile")
@measuring_options
@run_options
@say_options
def profile(experiment: str | None, run_name: str | None, as_json: bool, **options: Any) -> None:
    """Run a page for real, take the time of each stage, and log it to MLflow.

    The times pair with the counts of `stagemeter analyze` through `stagemeter mfu`.
    """
    from stagemeter.analysis.config import ProfileConfig

    config = read_config(ProfileConfig, options)
    if not config.enabled:
        say("enabled is false in the configuration: nothing to do")
        return
    from stagemeter.application.profile import profile_page

    print_profiled(profile_page(config, experiment=experiment, run_name=run_name), as_json)
