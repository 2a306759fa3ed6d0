"""``stagemeter analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import (
    load_options,
    log_options,
    no_track_option,
    output_options,
    read_load,
    read_speculation,
    run_options,
    speculation_options,
)
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import DEVICE, PATH, TEXT
from stagemeter.cli.workload import read_config, word_arguments, workload_options
from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    from stagemeter.analysis.config import AnalysisConfig

_EPILOG = """\b
Examples:
  stagemeter analyze deepseek-ocr                      a blank A4 page at 200 dpi, tiled
  stagemeter analyze qwen2.5-vl-7b scan.pdf --device H100        your page, and bounds on time
  stagemeter analyze deepseek-ocr 2480x3508 --batch-size 8 --new-tokens 2048
  stagemeter analyze llama-3.1-8b --seq-len 4096
  stagemeter analyze --estimate --no-track --json      closed forms: no torch, one second
  stagemeter analyze llama-3.1-8b --requests log.csv --no-track
  mlflow run . -P mode=large                           as an MLflow project
"""
_FOLDER = Path("stagemeter-report")


@click.command(cls=Command, epilog=_EPILOG)
@word_arguments
@workload_options("analyze")
@click.option("--estimate", is_flag=True, help="Use closed forms alone: build no model, import no torch.")
@click.option("--strict", is_flag=True, help="Fail on operators that have no formula. Without it they are listed.")
@click.option(
    "--device",
    metavar="NAME",
    type=DEVICE,
    help="Device to bound the time on: one of `stagemeter devices`, or measured (this machine).",
)
@click.option(
    "--conventions",
    is_flag=True,
    help="Print FLOPs per token beside those that Megatron-LM, torchtitan, vLLM and others would count.",
)
@load_options
@speculation_options
@log_options("its costs by closed forms, in all")
@click.option(
    "--output",
    "output_dir",
    metavar="FOLDER",
    type=PATH,
    default=_FOLDER,
    show_default=True,
    help="Folder for the report's files.",
)
@run_options
@click.option(
    "--register",
    metavar="MODEL",
    type=TEXT,
    help="Version of a registered model that gets the costs as tags: NAME (the newest), NAME/VERSION or NAME@ALIAS.",
)
@no_track_option
@output_options
def analyze(
    output_dir: Path | None, no_track: bool, as_json: bool, requests: Path | None, skip_bad: bool, **options: Any
) -> None:
    """Count what each stage of a model costs: parameters, FLOPs, activations, bytes.

    MODEL is one of `stagemeter models`, a folder, a file or a Hub id. Each PAGE is a picture, pages of a PDF such as
    scan.pdf[1-3], or a size such as 1654x2339; several are pages of one request. Neither
    weights nor a GPU are needed. The report goes to --output and to MLflow.
    """
    from stagemeter.analysis.config import AnalysisConfig

    config = read_config(AnalysisConfig, options)
    if requests is not None:
        for name in ("strict", "device", "conventions", "speculate", "pages_per_hour", "mfu", "from_run", "register"):
            if options[name]:
                raise StagemeterError(f"{name}: a log of requests takes no such option. Leave it out")
    speculation, load = read_speculation(options), read_load(options)
    if not config.enabled:
        say("enabled is false: nothing was run")
        return
    if requests is not None:
        where = None if no_track else {name: options[name] for name in ("experiment", "run_name")}
        _analyze_requests(config, requests, output_dir or _FOLDER, skip_bad, as_json, where)
        return
    if as_json and options["conventions"]:
        raise StagemeterError(
            "--conventions: prints a table, and --json the report alone. Leave one out, or call "
            "stagemeter.conventions.compare"
        )
    from stagemeter.application.analyze import analyze_page

    outcome = analyze_page(
        config, output_dir or _FOLDER, track=not no_track, speculation=speculation, load=load, **options
    )
    if as_json:
        print_json(outcome.report)
    else:
        from stagemeter.export.report import print_report

        print_report(outcome.report)
        if outcome.comparison is not None:
            from stagemeter.export.conventions import print_conventions

            print_conventions(outcome.comparison)
    for line in outcome.messages:
        say(line)
    if outcome.tracking_error is not None:
        raise outcome.tracking_error


def _analyze_requests(
    config: AnalysisConfig, log: Path, folder: Path, skip_bad: bool, as_json: bool, where: dict[str, Any] | None
) -> None:
    """Print the costs of a log, and log them unless `where` is None."""
    from stagemeter.application.requests import LoggedCosts, analyze_requests, analyze_requests_and_log

    if where is None:
        outcome = LoggedCosts(analyze_requests(config, log, folder, skip_bad))
    else:
        outcome = analyze_requests_and_log(config, log, folder, skip_bad, **where)
    if as_json:
        print_json(outcome.costs)
    else:
        from stagemeter.export.requests import print_requests

        print_requests(outcome.costs)
    for line in outcome.messages:
        say(line)
    if outcome.tracking_error is not None:
        raise outcome.tracking_error
