"""``stagemeter mfu``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import devices_option, output_options, peak_options, store_options
from stagemeter.cli.output import print_json, say
from stagemeter.cli.types import PATH, TEXT
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.progress import doing
from stagemeter.hardware.lookup import MEASURED

_EPILOG = """\b
Examples:
  stagemeter mfu --profile-run RUN                        the device that the run names
  stagemeter mfu --profile-run RUN --device A100-SXM-80GB
  stagemeter mfu --profile-run RUN --device measured      this machine, measured
  stagemeter mfu --profile-run RUN --peak-tflops 312 --peak-gbps 2039
  stagemeter mfu --experiment NAME                        all profiling runs of an experiment
"""


@click.command(cls=Command, epilog=_EPILOG)
@click.option("--profile-run", metavar="RUN", type=TEXT, help="Profiling run, by id or name.")
@click.option("--experiment", metavar="NAME", type=TEXT, help="Experiment of which to pair all profiling runs.")
@click.option("--static-run", metavar="RUN", type=TEXT, help="Static run, by id or name. [that of the same workload]")
@peak_options("Device with the peak, or measured (this machine). [what the profiling run names]")
@devices_option
@click.option(
    "--requests",
    metavar="FILE",
    type=PATH,
    help="Log of the requests of a serving engine, in CSV, JSON Lines or Parquet: FLOPs are exact. The run keeps them.",
)
@click.option("--figures", is_flag=True, help="Draw a roofline for each run of the experiment.")
@store_options
@output_options
def mfu(
    profile_run: str | None,
    experiment: str | None,
    static_run: str | None,
    device: str | None,
    peak_tflops: float | None,
    peak_gbps: float | None,
    devices: int | None,
    requests: Path | None,
    figures: bool,
    as_json: bool,
) -> None:
    """Pair profiling runs with their static runs: MFU, MBU and roofline of each stage.

    The results are logged to the profiling run.
    """
    exclusive(True, profile_run=profile_run, experiment=experiment)
    exclusive(static_run=static_run, experiment=experiment)
    exclusive(requests=requests, experiment=experiment)
    if experiment is not None:
        _pair_all(experiment, device, peak_tflops, peak_gbps, devices, figures, as_json)
        return
    from stagemeter.application.mfu import pair_runs
    from stagemeter.tracking.runs import find_run
    from stagemeter.tracking.store import run_messages, store_errors

    # MLflow prints to stdout, which belongs to the result.
    what = "pairing" if device != MEASURED else "measuring this machine for ten seconds, then pairing"
    doing(what)
    with redirect_stdout(sys.stderr):
        pairing = pair_runs(str(profile_run), static_run, device, peak_tflops, peak_gbps, devices, requests)
    if as_json:
        print_json(pairing)
    else:
        from stagemeter.export.pairing import print_pairing

        print_pairing(pairing)
    if not pairing["changed"]:
        say("the run already holds this pairing: nothing was written")
    with store_errors():
        paired = find_run(pairing["profile_run_id"])
    for line in run_messages(paired.info):
        say(line)


def _pair_all(
    experiment: str,
    device: str | None,
    tflops: float | None,
    gbps: float | None,
    devices: int | None,
    figures: bool,
    as_json: bool,
) -> None:
    from stagemeter.application.mfu import pair_experiment

    def on_run(done: int, runs: int) -> None:
        doing(f"pairing: {done:,} of {runs:,} runs")

    with redirect_stdout(sys.stderr):
        pairings, failures = pair_experiment(experiment, device, tflops, gbps, figures, on_run, devices)
    if as_json:
        print_json({"pairings": pairings, "failures": failures})
    elif pairings:
        from stagemeter.export.pairing import print_pairings

        print_pairings(pairings)
    for reason in failures.values():
        say(f"not paired: {reason}")
    if not pairings:
        raise StagemeterError(
            f"--experiment: none of the {len(failures)} profiling runs of {experiment!r} could be paired. "
            "See the reasons above"
        )
