"""The command line: a command per entry point of the MLflow project, each in a module; nothing but arguments."""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import version
from typing import Any

import click

from stagemeter.cli.analyze import analyze
from stagemeter.cli.compare import compare
from stagemeter.cli.devices import devices
from stagemeter.cli.endings import BAD_INPUT, BUG, INTERRUPTED, NO_STORE, end, show_warnings_as_lines
from stagemeter.cli.import_profile import import_profile
from stagemeter.cli.mfu import mfu
from stagemeter.cli.models import models
from stagemeter.cli.plan import plan
from stagemeter.cli.profile import profile
from stagemeter.cli.streams import prepare_streams
from stagemeter.cli.sweep import sweep
from stagemeter.cli.upload import upload
from stagemeter.core.addresses import redactor, secrets_of

__all__ = ["BAD_INPUT", "BUG", "INTERRUPTED", "NO_STORE", "cli", "main"]

#: What MLflow, its plug-ins and torch's profiler are told unless someone tells them otherwise: nothing of their own.
_QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "KINETO_LOG_LEVEL": "5",
    # Runs of our own say on what something ran, which need not be this machine.
    "STAGEMETER_RUN_CONTEXT": "off",
}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda n: n.replace("_", "-")}
)
@click.version_option(version("stagemeter"), prog_name="stagemeter")
def cli() -> None:
    """What each stage of a vision-language model costs at your workload, and how well it ran."""


for command in (analyze, profile, import_profile, mfu, compare, sweep, plan, upload, models, devices):
    cli.add_command(command)


def main() -> None:
    """Run the command line, and turn what goes wrong into one message and an exit code."""
    # A scheduler that ends a job asks first; the run should then be marked as killed, like one that Ctrl-C ended. A
    # shell's background jobs are told to ignore Ctrl-C; who interrupts one by its number means it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    prepare_streams(redactor(secrets_of(os.environ, sys.argv[1:])))
    show_warnings_as_lines()
    try:
        code = cli.main(standalone_mode=False)
        # Here, where it can be told that the disk is full, and not when the interpreter ends.
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = end(error)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(signum: int, frame: Any) -> None:
    # Once is enough: marking the run takes a moment, and must not be interrupted by who grows impatient.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
