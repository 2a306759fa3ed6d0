"""``stagemeter traces``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import output_options, store_options
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import DEVICE, FRACTION, NUMBER, PATH, TEXT, Optional, Since
from stagemeter.cli.workload import read_config, served_options
from stagemeter.core.errors import StagemeterError

_EPILOG = """\b
Examples:
  stagemeter traces --experiment NAME                                     tokens by model and span
  stagemeter traces --experiment NAME --model qwen2.5-vl-7b --served-as Qwen/Qwen2.5-VL-7B-Instruct
  stagemeter traces --experiment NAME --model llama-3.1-8b --device H100-SXM --price-per-hour 2.5 --since 7d
  stagemeter traces --experiment NAME --model llama-3.1-8b --output log.jsonl
  stagemeter analyze --model llama-3.1-8b --requests log.jsonl --no-track
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.option("--experiment", metavar="NAME", type=TEXT, help="Experiment of the traces.")
@click.option(
    "--since", metavar="AGE|DATE", type=Optional(Since()), help="Traces since then alone: 24h, 7d, 2026-11-01."
)
@click.option(
    "--output", "out", metavar="LOG", type=PATH, help="JSON Lines for the calls, which `analyze --requests` reads."
)
@click.option("--no-tags", is_flag=True, help="Do not tag the traces with their FLOPs.")
@click.option(
    "--served-as",
    metavar="NAME",
    multiple=True,
    type=click.STRING,
    help="Name under which a server serves the model; can be repeated. [that of --model]",
)
@click.option(
    "--device", metavar="NAME", type=DEVICE, help="Device of the server, for MFU: one of `stagemeter devices`."
)
@click.option("--peak-tflops", metavar="TFLOPS", type=FRACTION, help="Dense peak in TFLOP/s, in place of a device.")
@click.option("--devices", metavar="N", type=NUMBER, help="Devices that serve a call together. [1]")
@click.option("--price-per-hour", metavar="PRICE", type=FRACTION, help="Price of an hour of one device.")
@click.option("--concurrency", metavar="N", type=FRACTION, help="Calls that share the price, on average. [1]")
@served_options
@store_options
@output_options
def traces(
    experiment: str | None,
    since: float | None,
    out: Path | None,
    no_tags: bool,
    served_as: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Cost the calls of a served model in MLflow's traces: FLOPs by stage, MFU, the dearest traces.

    The traces get tags. Without --model, tokens alone are added up.
    """
    from stagemeter.analysis.config import AnalysisConfig
    from stagemeter.application.traces import count_traces
    from stagemeter.utilization.calls import CallMeter, Serving

    if experiment is None:
        raise StagemeterError("experiment: missing. Give the name of the experiment of the traces")
    server = {name: options.pop(name) for name in ("device", "peak_tflops", "devices", "price_per_hour", "concurrency")}
    asked: dict[str, Any] = {"served_as": served_as or None, **server}
    given = {name: value for name, value in asked.items() if value is not None}
    config = read_config(AnalysisConfig, options)
    meter = None
    if "model" in config.model_fields_set:
        meter = CallMeter(config, Serving(**given))
    elif given:
        raise StagemeterError(f"{next(iter(given))}: means nothing without a model. Give --model")
    # MLflow prints to stdout, which belongs to the result.
    with redirect_stdout(sys.stderr):
        document = count_traces(experiment, meter, since, out, tag=not no_tags)
    if as_json:
        print_json(document)
    else:
        from stagemeter.export.traces import print_traces

        print_traces(document)
    if out is not None:
        say(f"log of requests: {out}")
