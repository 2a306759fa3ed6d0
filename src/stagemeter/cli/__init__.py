"""The command line: one module for each command, which takes its arguments and prints the result."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

import click
from click.exceptions import NoSuchCommand

from stagemeter.cli.endings import BAD_INPUT, BUG, INTERRUPTED, NO_STORE, end, name_options, show_warnings_as_lines
from stagemeter.cli.streams import prepare_streams
from stagemeter.core.addresses import redactor, secrets_of
from stagemeter.core.errors import StagemeterError
from stagemeter.core.garbage import collect_rarely
from stagemeter.core.progress import progress_line

__all__ = ["BAD_INPUT", "BUG", "INTERRUPTED", "NO_STORE", "cli", "main"]

#: The commands by task, in the order of the help.
TASKS = {
    "Count": ("analyze", "tokens", "models"),
    "Measure": ("profile", "import-profile", "mfu", "watch", "traces", "devices"),
    "Compare": ("compare", "upload"),
    "Plan": ("sweep", "plan"),
}
#: Variables that keep MLflow, its plug-ins and torch's profiler quiet, unless the user sets them.
_QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "KINETO_LOG_LEVEL": "5",
    # Our own runs name their hardware, which can be another machine.
    "STAGEMETER_RUN_CONTEXT": "off",
}


class _Commands(click.Group):
    """The commands, each imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in TASKS.values() for name in names]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # click knows the names of imported commands alone.
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in self.list_commands(ctx):
            module = cmd_name.replace("-", "_")
            self.add_command(getattr(import_module(f"stagemeter.cli.{module}"), module))
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with progress_line("starting"):
                return super().invoke(ctx)
        except StagemeterError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if command is not None:
                name_options(error, command)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for task, names in TASKS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(task):
                formatter.write_dl([(name, one.get_short_help_str(200)) for name, one in commands if one is not None])


#: Earlier names of options.
_FORMERLY = {"output-dir": "output", "out": "output"}


def _normalized(name: str) -> str:
    name = name.replace("_", "-")
    return _FORMERLY.get(name, name)


_EPILOG = """\b
Examples:
  stagemeter analyze --image scan.png        count a page, without weights or a GPU
  stagemeter profile --scale small           time a reduced model
  stagemeter mfu --profile-run RUN           pair the times with the counts
  stagemeter sweep --batch-size 1,2,4,8      tabulate a grid of workloads
`stagemeter COMMAND --help` describes a command.
"""


@click.group(
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": _normalized,
    },
)
@click.version_option(package_name="stagemeter", prog_name="stagemeter")
def cli() -> None:
    """Count what each stage of a model costs at your workload, and how well it ran."""


def main() -> None:
    """Run the command line, and turn an error into one message and an exit code."""
    # A scheduler sends SIGTERM before it ends a job; the run is then marked as killed, as after Ctrl-C. A shell's
    # background jobs ignore SIGINT by default, but one that is sent by hand is meant.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    collect_rarely()
    prepare_streams(redactor(secrets_of(os.environ, sys.argv[1:])))
    show_warnings_as_lines()
    try:
        code = cli.main(prog_name="stagemeter", standalone_mode=False)
        # Flushed here, where a full disk can be reported; the interpreter's own flush comes too late.
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = end(error)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(signum: int, frame: Any) -> None:
    # Once: a second signal must not interrupt the marking of the run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
