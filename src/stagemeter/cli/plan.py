"""``stagemeter plan``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import corpus_options, log_options, no_track_option, output_options, run_options
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import DEVICE, FRACTION, PATH, TEXT, several
from stagemeter.cli.workload import read_config, word_arguments, workload_options
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.units import number_in

_EPILOG = """\b
Examples:
  stagemeter plan qwen2.5-vl-7b --pages-per-day 1M          common devices, each at its best batch size
  stagemeter plan --pages-per-day 1M --device H100,L40S --batch-size 1,16,64 --price H100=2.5/h,L40S=0.9/h
  stagemeter plan --pages-per-day 200k --device A100-SXM-40GB --mode base --batch-size 16 --mfu 0.05
  stagemeter plan --pages-per-day 1M --device H100-SXM --from-run RUN       a run that was paired
  stagemeter plan --pages-per-day 50k --device all --images scans/          the mean of a corpus
  stagemeter plan llama-3.1-8b --requests-per-day 1M --requests log.csv --mfu 0.3
"""
#: A price as people write it: a device, a number with or without a currency, and the hour.
_PRICE = re.compile(r"(?P<device>[^=]+)=\s*[$€£]?(?P<price>[^/$€£]+?)\s*[$€£]?\s*(/\s*h(our)?)?")


@click.command(cls=Command, epilog=_EPILOG)
@click.option("--pages-per-day", metavar="NUMBER", type=FRACTION, help="Pages a day.")
@click.option(
    "--requests-per-day", metavar="NUMBER", type=FRACTION, help="Requests a day, of a log or of a text model."
)
@several(
    "--device",
    metavar="NAME[,...]",
    type=DEVICE,
    help="Devices of `stagemeter devices`, or all. [those with a price, else seven common ones]",
)
@several("--batch-size", metavar="N|N..N[,...]", type=TEXT, help="Requests processed at once. [1, 2, 4, ... 256]")
@several("--price", metavar="NAME=PRICE[,...]", type=TEXT, help="Price of a device for an hour, such as L40S=0.9/h.")
@click.option("--mfu", metavar="SHARE", type=FRACTION, help="MFU of whole requests, such as 0.05. [the roofline's]")
@click.option("--from-run", metavar="RUN", type=TEXT, help="Paired profiling run to take the MFU from.")
@corpus_options(PATH)
@log_options("the mean request of it is planned for")
@word_arguments
@workload_options("plan", "--batch-size")
@run_options
@no_track_option
@output_options
def plan(
    pages_per_day: float | None,
    requests_per_day: float | None,
    device: Sequence[str] | None,
    batch_size: Sequence[str] | None,
    price: Sequence[str] | None,
    experiment: str | None,
    run_name: str | None,
    no_track: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Work out which device, and how many, a number of pages a day needs, and say what the answer assumes.

    MODEL and PAGE are those of `stagemeter analyze`. Each device gets a row, at the batch size that needs the fewest
    devices; --json has every batch size. Without --mfu or --from-run, numbers are lower bounds. With --images or
    --pages, the cost is that of the mean page; with --requests, that of the mean request of a log.
    """
    from stagemeter.analysis.config import AnalysisConfig
    from stagemeter.application.plan import PAGE, REQUEST, log_plan, plan_devices
    from stagemeter.export.plan import print_plan
    from stagemeter.sweeping.ranges import numbers, words

    exclusive(pages_per_day=pages_per_day, requests_per_day=requests_per_day)
    per_day, unit = (pages_per_day, PAGE) if requests_per_day is None else (requests_per_day, REQUEST)
    if per_day is None:
        raise StagemeterError(
            "--pages-per-day: missing. Give the number of pages to process a day, or --requests-per-day"
        )
    config = read_config(AnalysisConfig, options)
    found = plan_devices(
        config,
        per_day,
        None if device is None else words(",".join(device), "--device"),
        unit=unit,
        batch_sizes=None if batch_size is None else numbers(",".join(batch_size), "--batch-size"),
        prices=dict(map(_price, words(",".join(price or ()), "--price") if price else ())),
        **options,
    )
    if not as_json:
        print_plan(found)
    run_id, messages = (None, []) if no_track else log_plan(found, config, experiment=experiment, run_name=run_name)
    if as_json:
        print_json({"run_id": run_id, **found.to_dict()})
    for line in messages:
        say(line)


def _price(text: str) -> tuple[str, float]:
    """Read a device and its price for an hour."""
    match = _PRICE.fullmatch(text)
    price = None if match is None else number_in(match["price"])
    if match is None or price is None or price < 0:
        raise StagemeterError(f"--price {text!r}: is no price of a device. Write such as H100-SXM=2.5/h")
    return match["device"].strip(), float(price)
