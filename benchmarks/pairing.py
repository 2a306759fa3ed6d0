"""Time of pairing a whole experiment, against the bare calls to MLflow that it needs.

Both sides search the runs and log the same metrics, tags and files. Ours also finds the counts, computes utilization
and writes its report.

    python benchmarks/pairing.py             # 1,000 profiling runs in a sqlite store
    python benchmarks/pairing.py --runs 200
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
from timing import paired, print_table

TIMES = {"sam": 31.7, "clip": 9.13, "projector": 0.217, "prefill": 27.9, "decode": 7.77, "decode_total": 3970.47}


def fill(experiment: str, runs: int) -> None:
    """Log one static run and some profiling runs that were measured at a few different lengths."""
    import mlflow

    from stagemeter import AnalysisConfig, describe_model, estimate_model, log_static_report
    from stagemeter.core.workload import Workload
    from stagemeter.profiling.document import profile_document
    from stagemeter.profiling.profile import Profile
    from stagemeter.tracking.profile import log_profile

    model = describe_model("deepseek-ocr")
    config = AnalysisConfig()
    report = estimate_model(model, config)
    mlflow.set_experiment(experiment)
    log_static_report(report)
    client = mlflow.MlflowClient()
    (parent,) = client.search_experiments(filter_string=f"name = '{experiment}'")
    for number in range(runs):
        times = {stage: (value * (1 + number / 1e4),) for stage, value in TIMES.items()}
        document = profile_document(
            Profile(times_ms=times, source="benchmark", clock="none"),
            Workload.from_dict({**report["metadata"]["workload"], "new_tokens": 512 - number % 7}),
            model=config.model,
            family="deepseek-ocr",
            architecture_hash=model.architecture.hash,
            config=config.model_dump(),
        )
        run = client.create_run(parent.experiment_id, run_name=f"profile {number}")
        log_profile(run.info.run_id, document)
        client.set_terminated(run.info.run_id)


def pair_all(experiment: str) -> float:
    """Pair all runs anew, and return the seconds of each."""
    from stagemeter import pair_experiment

    # Another peak each time, since an unchanged pairing is not written again.
    pair_all.tflops += 1.0  # type: ignore[attr-defined]
    start = time.perf_counter()
    pairings, failures = pair_experiment(experiment, peak_tflops=pair_all.tflops, peak_gbps=2039.0)  # type: ignore[attr-defined]
    seconds = time.perf_counter() - start
    assert not failures
    assert all(pairing["changed"] for pairing in pairings)
    return seconds / len(pairings)


pair_all.tflops = 300.0  # type: ignore[attr-defined]


def bare(experiment: str) -> float:
    """Make the same calls with the results of an earlier pairing, and return the seconds of each run."""
    import mlflow
    from mlflow.entities import Metric, RunTag

    client = mlflow.MlflowClient()
    (parent,) = client.search_experiments(filter_string=f"name = '{experiment}'")
    start = time.perf_counter()
    runs, token = [], None
    while token is None or token:
        page = client.search_runs(
            [parent.experiment_id], "tags.`stagemeter.kind` = 'profile'", max_results=1000, page_token=token
        )
        runs, token = [*runs, *page], page.token or ""
    now = int(time.time() * 1000)
    prefixes = ("mfu/", "mfu_causal/", "mbu/", "roofline_ms/", "roofline_fraction/")
    for run in runs:
        metrics = [
            Metric(key, value + 1e-9, now, 0) for key, value in run.data.metrics.items() if key.startswith(prefixes)
        ]
        names = ("static_run_id", "peak", "devices", "flags", "basis", "pairing_schema_version", "pairing_hash")
        tags = [RunTag(f"stagemeter.{name}", run.data.tags[f"stagemeter.{name}"]) for name in names]
        tags.append(RunTag("mlflow.note.content", run.data.tags["mlflow.note.content"]))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "mfu.json").write_text(json.dumps(run.data.metrics, indent=2) * 2)
            (Path(folder) / "mfu.md").write_text(run.data.tags["mlflow.note.content"])
            client.log_artifacts(run.info.run_id, folder)
        client.log_batch(run.info.run_id, metrics=metrics, tags=tags)
    return (time.perf_counter() - start) / len(runs)


def calls_of(experiment: str) -> Counter[str]:
    """Count calls to MLflow's client by name while an experiment is paired."""
    from mlflow import MlflowClient

    calls: Counter[str] = Counter()
    kept = {name: getattr(MlflowClient, name) for name in dir(MlflowClient) if not name.startswith("_")}

    def counted(name: str):  # type: ignore[no-untyped-def]
        def call(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            calls[name] += 1
            return kept[name](self, *args, **kwargs)

        return call

    for name, function in kept.items():
        if callable(function):
            setattr(MlflowClient, name, counted(name))
    try:
        pair_all(experiment)
    finally:
        for name, function in kept.items():
            setattr(MlflowClient, name, function)
    return calls


@click.command()
@click.option("--runs", default=1000, show_default=True, help="Profiling runs.")
@click.option("--repeats", default=3, show_default=True, help="Counted pairs.")
def main(runs: int, repeats: int) -> None:
    """Measure, and print a table."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        fill("benchmark", runs)
        pair = paired(lambda: pair_all("benchmark"), lambda: bare("benchmark"), repeats)
        calls = calls_of("benchmark")
        os.chdir("/")
    ours, theirs = 1e3 * pair.ours, 1e3 * pair.theirs
    what = f"pairing {runs:,} runs ({ours:.1f} ms a run) / the bare calls ({theirs:.1f} ms a run)"
    calls_per_run = f"{sum(calls.values()) / runs:.2f}"
    print_table([(what, f"{pair.ratio:.2f} x", ""), ("calls to MLflow's client a run", calls_per_run, "4")])


if __name__ == "__main__":
    main()
