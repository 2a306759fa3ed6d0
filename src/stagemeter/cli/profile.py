"""``stagemeter profile``."""

from __future__ import annotations

from typing import Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import output_options, run_options
from stagemeter.cli.output import print_profiled, say
from stagemeter.cli.workload import measuring_options, read_config, word_arguments, workload_options

_EPILOG = """\b
Examples:
  stagemeter profile --scale small                     a reduced model, in seconds
  stagemeter profile --mode tiny --new-tokens 4        the full model with random weights
  stagemeter profile --weights /path/to/DeepSeek-OCR --device cuda:0 --repeats 10
Then pair it with its counts:
  stagemeter mfu --profile-run RUN
"""


@click.command(cls=Command, epilog=_EPILOG)
@word_arguments
@workload_options("profile")
@measuring_options
@run_options
@output_options
def profile(as_json: bool, **options: Any) -> None:
    """Run requests, time each stage, and log the times to MLflow.

    MODEL and PAGE are those of `stagemeter analyze`.
    `stagemeter mfu` pairs the times with the counts of `stagemeter analyze`.
    """
    from stagemeter.analysis.config import ProfileConfig

    config = read_config(ProfileConfig, options)
    if not config.enabled:
        say("enabled is false: nothing was run")
        return
    from stagemeter.application.profile import profile_page

    print_profiled(profile_page(config, **options), as_json)
