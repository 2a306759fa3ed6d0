"""``stagemeter analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stagemeter.cli.options import no_track_option, output_options, run_options
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import PATH, TEXT
from stagemeter.cli.workload import WorkloadCommand, read_config, workload_options
from stagemeter.core.errors import StagemeterError

_EPILOG = """\b
Examples:
  stagemeter analyze                                   a blank A4 page at 200 dpi, tiled
  stagemeter analyze --image scan.png --mode base      your page, as one view of 1024 px
  stagemeter analyze --page-size 2480x3508 --batch-size 8 --new-tokens 2048
  stagemeter analyze --device A100-80GB                bounds on time, and whether it fits
  stagemeter analyze --model llama-3.1-8b --seq-len 4096
  stagemeter analyze --estimate --no-track --json      closed forms: no torch, one second
  mlflow run . -P mode=large                           as an MLflow project
"""
_FOLDER = Path("stagemeter-report")


@click.command(cls=WorkloadCommand, epilog=_EPILOG)
@workload_options("analyze")
@click.option("--estimate", is_flag=True, help="Use closed forms alone: build no model, import no torch.")
@click.option("--strict", is_flag=True, help="Fail on operators that have no formula. Without it they are listed.")
@click.option(
    "--device",
    metavar="NAME",
    type=TEXT,
    help="Device to bound the time on: one of `stagemeter devices`, or measured (this machine).",
)
@click.option(
    "--conventions",
    is_flag=True,
    help="Print FLOPs per token beside those that Megatron-LM, torchtitan, vLLM and others would count.",
)
@click.option(
    "--output-dir",
    metavar="FOLDER",
    type=PATH,
    default=_FOLDER,
    show_default=True,
    help="Folder for the report's files.",
)
@run_options
@no_track_option
@output_options
def analyze(output_dir: Path | None, no_track: bool, as_json: bool, **options: Any) -> None:
    """Count what each stage of a model costs: parameters, FLOPs, activations, bytes.

    Neither weights nor a GPU are needed. The report goes to --output-dir and to MLflow.
    """
    from stagemeter.analysis.config import AnalysisConfig

    config = read_config(AnalysisConfig, options)
    if not config.enabled:
        say("enabled is false: nothing was run")
        return
    if as_json and options["conventions"]:
        raise StagemeterError(
            "--conventions: prints a table, and --json the report alone. Leave one out, or call "
            "stagemeter.conventions.compare"
        )
    from stagemeter.application.analyze import analyze_page

    outcome = analyze_page(config, output_dir or _FOLDER, track=not no_track, **options)
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
