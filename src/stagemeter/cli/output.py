"""The options that say where results go, and how much is said."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stagemeter.cli.types import FRACTION, TEXT
from stagemeter.core.escape import printable

if TYPE_CHECKING:
    from stagemeter.profiling.document import Profiled

Command = TypeVar("Command", bound=Callable[..., Any])

_RUN_OPTIONS = (
    click.option("--experiment", type=TEXT, help="MLflow experiment. [MLflow's own choice]"),
    click.option("--run-name", type=TEXT, help="Name of the MLflow run. [what was asked for, in words]"),
)


def run_options(command: Command) -> Command:
    """Give a command the options of the run that it logs."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return store_options(command)


def store_options(command: Command) -> Command:
    """Give a command ``--store-timeout``."""
    return click.option(
        "--store-timeout",
        type=FRACTION,
        expose_value=False,
        callback=_set_store_timeout,
        help="Seconds that an MLflow server may answer nothing of use. [STAGEMETER_STORE_TIMEOUT, or 30]",
    )(command)


def _set_store_timeout(ctx: click.Context, param: click.Parameter, seconds: float | None) -> None:
    # As its variable, which is looked at where the store is asked: processes that are started see it, too.
    if seconds is not None:
        os.environ["STAGEMETER_STORE_TIMEOUT"] = str(seconds)


class _Lines(logging.Formatter):
    """Messages without what a terminal would obey; tracebacks, which -v shows, as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def _set_up_logging(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Lines("%(levelname)s %(name)s: %(message)s"))
    if not verbose:
        # What is counted does not depend on kernels that transformers advises to install.
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
        # Each time that MLflow asks again; what comes of it in the end is said.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def say_options(command: Command) -> Command:
    """Give a command ``--json`` and ``--verbose``."""
    command = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_up_logging, help="Say more on stderr."
    )(command)
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout, and nothing else there."
    )(command)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    from stagemeter.export import json_file

    json_file.print_json(document)


def say(line: str) -> None:
    """Say something on stderr: one line, without what a terminal would obey."""
    click.echo(printable(line), err=True)


def print_profiled(profiled: Profiled, as_json: bool) -> None:
    """Print a profile that was logged on stdout, and where it went on stderr."""
    if as_json:
        print_json({"run_id": profiled.run_id, **profiled.document})
    else:
        from stagemeter.export.profile import print_profile

        print_profile(profiled.document)
    for line in profiled.messages:
        say(line)
    if profiled.tracking_error is not None:
        raise profiled.tracking_error
