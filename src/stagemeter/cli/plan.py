"""``stagemeter plan``."""

from __future__ import annotations

from typing import Any

import click

from stagemeter.cli.options import corpus_options, log_options, output_options, store_options
from stagemeter.cli.output import print_json
from stagemeter.cli.types import DEVICE, FRACTION, PATH, TEXT
from stagemeter.cli.workload import WorkloadCommand, read_config, word_arguments, workload_options
from stagemeter.core.errors import StagemeterError

_EPILOG = """\b
Examples:
  stagemeter plan --pages-per-day 200000 --device A100-SXM-40GB --mode base --batch-size 16 --mfu 0.05
  stagemeter plan --pages-per-day 1e6 --device H100-SXM --from-run RUN       a run that was paired
  stagemeter plan --pages-per-day 50000 --device L40S --images scans/        the mean of a corpus
  stagemeter plan --pages-per-day 1e6 --device H100-SXM --model llama-3.1-8b --requests log.csv --mfu 0.3
"""


@click.command(cls=WorkloadCommand, epilog=_EPILOG)
@click.option(
    "--pages-per-day", metavar="NUMBER", type=FRACTION, help="Pages a day; of a log or a text model, requests."
)
@click.option("--device", metavar="NAME", type=DEVICE, help="Device, one of `stagemeter devices`.")
@click.option("--mfu", metavar="SHARE", type=FRACTION, help="MFU of whole requests, such as 0.05. [the roofline's]")
@click.option("--from-run", metavar="RUN", type=TEXT, help="Paired profiling run to take the MFU from.")
@corpus_options(PATH)
@log_options("the mean request of it is planned for")
@word_arguments
@workload_options("plan")
@store_options
@output_options
def plan(pages_per_day: float | None, device: str | None, as_json: bool, **options: Any) -> None:
    """Work out how many devices a number of pages a day needs, and say what the answer assumes.

    MODEL and PAGE are those of `stagemeter analyze`. With --images or --pages, the cost is that of the mean page; with
    --requests, that of the mean request of a log.
    """
    if pages_per_day is None:
        raise StagemeterError("--pages-per-day: missing. Give the number of pages to process a day")
    if device is None:
        raise StagemeterError("--device: missing. Give one of `stagemeter devices`")
    from stagemeter.analysis.config import AnalysisConfig
    from stagemeter.application.plan import plan_devices
    from stagemeter.utilization.fleet import utilization_in_words

    config = read_config(AnalysisConfig, options)
    sizing = plan_devices(config, pages_per_day, device, **options)
    if as_json:
        print_json(sizing.to_dict())
        return
    measured = f", measured with {', '.join(sizing.differences)}" if sizing.differences else ""
    least = "at least " if sizing.basis == "roofline" else ""
    answer = (
        f"{least}{sizing.devices:,} x {device} for {pages_per_day:,.0f} {sizing.unit}s a day: "
        f"{sizing.pages_per_day_and_device:,.0f} {sizing.unit}s a day each, {sizing.seconds_per_page:.4g} s a "
        f"{sizing.unit}, "
        f"MFU {utilization_in_words(sizing.mfu, sizing.mfu_causal)}{measured}"
    )
    from stagemeter.core.terminal import print_lines

    print_lines([answer, *(f"assumed: {line}" for line in sizing.assumptions)])
