"""Time of comparing and pairing in a store of 10,000 runs, above MLflow's own search.

python benchmarks/store.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import click
from timing import median_seconds, print_table

RUNS = 10_000
#: Tokens of the runs that the filter finds.
FOUND = 7
TIMES = {"sam": 31.7, "clip": 9.13, "projector": 0.217, "prefill": 27.9, "decode": 7.77}


def fill(experiment: str, runs: int) -> None:
    """Log static runs as `stagemeter analyze` does, without their files."""
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    from stagemeter import AnalysisConfig, describe_model, estimate_model
    from stagemeter.core.metrics import report_values
    from stagemeter.core.params import workload_params
    from stagemeter.tracking.labels import STATIC, workload_tags

    client = mlflow.MlflowClient()
    model = describe_model("deepseek-ocr")
    report = estimate_model(model, AnalysisConfig(mode="tiny"))
    params = workload_params(report["metadata"]["config"], report["metadata"]["workload"])
    tags = workload_tags(report["metadata"]) | {
        "stagemeter.kind": STATIC,
        "stagemeter.schema_version": report["schema_version"],
    }
    values = report_values(report)
    place = client.get_experiment_by_name(experiment).experiment_id
    with click.progressbar(range(runs), label="filling", file=sys.stderr) as numbers:
        for number in numbers:
            run = client.create_run(place, run_name=f"run {number}").info.run_id
            tokens = FOUND if number % (runs // 10) == 0 else 100 + number
            workload = {**report["metadata"]["workload"], "new_tokens": tokens}
            own = {**tags, "stagemeter.workload": json.dumps(workload), "stagemeter.workload_hash": f"w{number}"}
            client.log_batch(
                run,
                metrics=[Metric(name, float(value), 0, 0) for name, value in values.items()],
                params=[Param(name, value) for name, value in {**params, "new_tokens": str(tokens)}.items()],
                tags=[RunTag(name, value) for name, value in own.items()],
            )
            client.set_terminated(run)


@click.command()
@click.option("--runs", default=RUNS, show_default=True, help="Runs in the store.")
def main(runs: int) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        import mlflow

        from stagemeter import AnalysisConfig, compare_runs, pair_experiment, pair_runs
        from stagemeter.application.analyze import analyze_page
        from stagemeter.application.import_profile import Source, import_profile

        client = mlflow.MlflowClient()
        place = client.create_experiment("large", artifact_location=Path(folder, "artifacts").as_uri())
        fill("large", runs)
        config = AnalysisConfig(mode="base")
        analyze_page(config, Path(folder, "report"), estimate=True, experiment="large")
        times = Path(folder, "times.json")
        times.write_text(json.dumps(TIMES))
        profile = import_profile(config, Source(files=(str(times),)), experiment="large").run_id

        condition = f"params.new_tokens = '{FOUND}'"
        ours = median_seconds(lambda: compare_runs(experiment="large", condition=condition), 5)
        search = median_seconds(lambda: client.search_runs([place], condition), 5)
        what = f"compare --filter among {runs:,} runs ({ours:.2f} s), above MLflow's own search ({search:.2f} s)"
        rows = [(what, f"{ours - search:+.2f} s", "2 s")]

        statics = "tags.`stagemeter.kind` = 'static' and attributes.status = 'FINISHED'"

        def everything() -> None:
            token: str | None = None
            while True:
                page = client.search_runs([place], statics, max_results=1000, page_token=token)
                token = page.token
                if not token:
                    return

        figures = {"peak_tflops": 312, "peak_gbps": 2039}
        one = median_seconds(lambda: pair_runs(profile, **figures), 3)
        what = f"pairing a profile among {runs:,} runs, MLflow's search of its own counts included"
        rows.append((what, f"{one:.2f} s", "2 s"))
        ours = median_seconds(lambda: pair_experiment("large", **figures), 3)
        search = median_seconds(everything, 3)
        what = f"pairing an experiment of {runs:,} runs ({ours:.2f} s), above MLflow's own search ({search:.2f} s)"
        rows.append((what, f"{ours - search:+.2f} s", "2 s"))
    print_table(rows)


if __name__ == "__main__":
    main()
