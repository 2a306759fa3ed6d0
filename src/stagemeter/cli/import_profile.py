"""``stagemeter import-profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stagemeter.cli.output import print_profiled, run_options, say_options
from stagemeter.cli.types import FRACTION, NUMBER, PATH, TEXT
from stagemeter.cli.workload import read_config, workload_options

_EPILOG = """\b
Examples:
  stagemeter import-profile trace.json.gz                          torch's profiler
  stagemeter import-profile report.sqlite --map prefill='llm*'     nsys export --type sqlite
  stagemeter import-profile ranges.csv                             nsys stats --report nvtx_gpu_proj_sum
  stagemeter import-profile times.csv --mode base --batch-size 8   stage,time_ms[,repeat]
  stagemeter import-profile http://localhost:8000/metrics --interval 60
  stagemeter import-profile before.txt after.txt --interval 60     two scrapes that were saved
  stagemeter import-profile --from-run RUN --map prefill=my/metric
"""


@click.command(name="import-profile", epilog=_EPILOG)
@click.argument("source", nargs=-1)
@click.option("--from-run", type=TEXT, help="MLflow run, by id or name, that holds the times as metrics.")
@click.option(
    "--map", "pairs", multiple=True, help="stage=PATTERN, or stage=METRIC with --from-run; can be given repeatedly."
)
@click.option("--mapping", "mapping_file", type=PATH, help="YAML file of the form `stage: [pattern, ...]`.")
@click.option("--interval", type=FRACTION, help="Seconds between two scrapes.")
@click.option("--engine-model", type=TEXT, help="model_name of the serving engine to look at, where it has several.")
@click.option(
    "--prefill-contains-vision/--prefill-without-vision",
    default=None,
    help="For summaries without timestamps: whether the vision stages ran inside of the prefill range.",
)
@click.option("--device", type=TEXT, help="What it ran on, see `stagemeter devices`. [what the source names]")
@click.option("--devices", type=NUMBER, help="Devices that did the work. [one for each engine in the metrics, else 1]")
@workload_options("import-profile")
@run_options
@say_options
def import_profile(
    source: tuple[str, ...],
    from_run: str | None,
    pairs: tuple[str, ...],
    mapping_file: Path | None,
    interval: float | None,
    engine_model: str | None,
    prefill_contains_vision: bool | None,
    device: str | None,
    devices: int | None,
    experiment: str | None,
    run_name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Log times that something else took as a profiling run.

    SOURCE is a trace, an export or a table of times; two scrapes of vLLM's metrics; or their address. What was
    measured is said with the options of `analyze`.
    """
    from stagemeter.analysis.config import AnalysisConfig

    config = read_config(AnalysisConfig, options)
    from stagemeter.application.import_profile import Source
    from stagemeter.application.import_profile import import_profile as run

    where = Source(
        files=source,
        from_run=from_run,
        mapping_file=mapping_file,
        pairs=pairs,
        interval=interval,
        engine_model=engine_model,
        prefill_contains_vision=prefill_contains_vision,
        device=device,
        devices=devices,
    )
    print_profiled(run(config, where, experiment=experiment, run_name=run_name), as_json)
