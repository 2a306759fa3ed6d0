"""The options that several commands share, beside those of settings (`stagemeter.cli.workload`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from stagemeter.cli.types import DEVICE, FRACTION, MODEL, NUMBER, PATH, TEXT, Command, Optional, once, with_options
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.escape import printable

if TYPE_CHECKING:
    from stagemeter.analysis.speculation import Speculation
    from stagemeter.utilization.load import Load

_ONE_FOLDER = "its subfolders are read, too, and a table holds any number of pages"


def run_options(command: Command) -> Command:
    """Give a command the options of the run that it logs."""
    command = click.option(
        "--run-name", metavar="NAME", type=TEXT, help="Name of the MLflow run. [the workload in words]"
    )(command)
    command = click.option(
        "--experiment", metavar="NAME", type=TEXT, help="MLflow experiment. [such as stagemeter/deepseek-ocr]"
    )(command)
    return store_options(command)


def store_options(command: Command) -> Command:
    """Give a command ``--store-timeout``."""
    return click.option(
        "--store-timeout",
        metavar="SECONDS",
        type=FRACTION,
        expose_value=False,
        callback=_set_store_timeout,
        help="Seconds to wait for an MLflow server that does not answer. [STAGEMETER_STORE_TIMEOUT, or 30]",
    )(command)


def _set_store_timeout(ctx: click.Context, param: click.Parameter, seconds: float | None) -> None:
    # A variable also reaches the processes that are started.
    if seconds is not None:
        os.environ["STAGEMETER_STORE_TIMEOUT"] = str(seconds)


no_track_option = click.option("--no-track", is_flag=True, help="Do not log to MLflow.")
devices_option = click.option(
    "--devices", metavar="N", type=NUMBER, help="Number of devices that did the work. [what the profile says, else 1]"
)


def peak_options(device: str) -> Callable[[Command], Command]:
    """Give a command ``--device``, with some words of help, ``--peak-tflops`` and ``--peak-gbps``."""

    def add(command: Command) -> Command:
        bandwidth = "Memory bandwidth in GB/s, beside --peak-tflops."
        command = click.option("--peak-gbps", metavar="GBPS", type=FRACTION, help=bandwidth)(command)
        rate = "Dense peak in TFLOP/s, in place of a device."
        command = click.option("--peak-tflops", metavar="TFLOPS", type=FRACTION, help=rate)(command)
        return click.option("--device", metavar="NAME", type=DEVICE, help=device)(command)

    return add


def speculation_options(command: Command) -> Command:
    """Give a command the options of speculative decoding, which `read_speculation` takes."""
    options = (
        click.option(
            "--speculate",
            metavar="K",
            type=NUMBER,
            help="Speculative decoding: K drafted tokens a step, beside plain decoding. Give --acceptance, too.",
        ),
        click.option(
            "--acceptance",
            metavar="P",
            type=FRACTION,
            help="Probability that a drafted token is accepted; above 1, the mean tokens of a step.",
        ),
        click.option(
            "--draft",
            type=Optional(click.Choice(["ngram", "mtp"])),
            help="What drafts: text before (ngram), or the model's own module (mtp). [ngram]",
        ),
        click.option("--draft-model", metavar="MODEL", type=MODEL, help="A smaller model that drafts, as for --model."),
    )
    return with_options(command, options)


def read_speculation(options: dict[str, Any]) -> Speculation | None:
    """Take the options of speculative decoding out of a command's options; None if there are none."""
    given = {name: options.pop(name) for name in ("speculate", "acceptance", "draft", "draft_model")}
    drafted, acceptance = given.pop("speculate"), given.pop("acceptance")
    if drafted is None:
        for name, value in {"acceptance": acceptance, **given}.items():
            if value is not None:
                raise StagemeterError(f"--{name.replace('_', '-')} {value}: nothing is drafted. Give --speculate, too")
        return None
    if acceptance is None:
        raise StagemeterError("--acceptance: missing. Give the share of drafted tokens that are accepted, such as 0.7")
    from stagemeter.analysis.speculation import Speculation

    return Speculation(drafted, acceptance, **given)


def load_options(command: Command) -> Command:
    """Give a command the options of a rate of pages, which `read_load` takes."""
    options = (
        click.option(
            "--pages-per-hour",
            metavar="N",
            type=FRACTION,
            help="Rate of pages: the share of --device that each stage takes. For a text model, requests.",
        ),
        click.option(
            "--mfu",
            metavar="SHARE",
            type=FRACTION,
            help="MFU of each stage at that rate, such as 0.4. A stage that cannot reach it takes its bound.",
        ),
        click.option(
            "--from-run", metavar="RUN", type=TEXT, help="Paired profiling run to take each stage's MFU from."
        ),
    )
    return with_options(command, options)


def read_load(options: dict[str, Any]) -> Load | None:
    """Take the options of a rate out of a command's options; None if there are none."""
    pages, mfu, run = options.pop("pages_per_hour"), options.pop("mfu"), options["from_run"]
    exclusive(mfu=mfu, from_run=run)
    if pages is None:
        for name, value in {"mfu": mfu, "from-run": run}.items():
            if value is not None:
                raise StagemeterError(f"--{name} {value}: nothing has this MFU. Give --pages-per-hour, too")
        return None
    if options["device"] is None:
        raise StagemeterError("--pages-per-hour: of no device. Give --device, one of `stagemeter devices`")
    from stagemeter.utilization.load import Load

    return Load(pages, mfu)


def corpus_options(kind: click.ParamType[Any]) -> Callable[[Command], Command]:
    """Give a command the options that name many pages, of a type for their paths."""

    def add(command: Command) -> Command:
        table = "CSV of page sizes with the columns width, height and, optionally, page."
        command = once("--pages", metavar="FILE", type=kind, instead=_ONE_FOLDER, help=table)(command)
        folder = "Folder of pictures, whose sizes are the pages."
        return once("--images", metavar="FOLDER", type=kind, instead=_ONE_FOLDER, help=folder)(command)

    return add


def log_options(use: str) -> Callable[[Command], Command]:
    """Give a command ``--requests`` and ``--skip-bad``; `use` says what becomes of the log."""

    def add(command: Command) -> Command:
        skip = "Leave out lines of --requests that cannot be used, and list them."
        command = click.option("--skip-bad", is_flag=True, callback=_with_log, help=skip)(command)
        log = f"Log of requests, or the result of a benchmark: {use}."
        return click.option("--requests", metavar="FILE", type=PATH, is_eager=True, help=log)(command)

    return add


def _with_log(context: click.Context, option: click.Parameter, value: bool) -> bool:
    if value and context.params.get("requests") is None:
        raise StagemeterError("--skip-bad: there is no log whose lines it skips. Give --requests")
    return value


def output_options(command: Command) -> Command:
    """Give a command ``--json`` and ``--verbose``."""
    command = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_up_logging,
        help="Show all notes and columns, and say more on stderr.",
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, and nothing else.")(
        command
    )


class LineFormatter(logging.Formatter):
    """Formatter of messages without control characters; tracebacks, which -v shows, stay as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format the line of a record; a warning of ours reads like every other."""
        ours = record.levelno == logging.WARNING and record.name.startswith("stagemeter.")
        return printable(f"warning: {record.message}" if ours else super().formatMessage(record))


def _set_up_logging(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    if not verbose:
        # Counts do not depend on the kernels that transformers advises to install.
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
        # It reports each retry; the outcome is reported anyway.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
