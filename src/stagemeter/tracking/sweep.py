"""A sweep becomes one MLflow run: its grid, what it comes to, its table and charts; and children where asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric, Param, RunInfo, RunStatus, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from stagemeter.core.settings import AnalysisSettings
from stagemeter.core.workload import stable_hash
from stagemeter.export.charts import chart_picture, charts_page
from stagemeter.export.sweep import sweep_charts, sweep_markdown
from stagemeter.sweeping.build import SweepSettings
from stagemeter.sweeping.children import child_rows
from stagemeter.sweeping.summary import SweepSummary, summarize
from stagemeter.tracking.artifacts import log_files
from stagemeter.tracking.holding import missing_params, require_room
from stagemeter.tracking.labels import KIND, MODEL, POINT, REPORT_HASH, SWEEP
from stagemeter.tracking.store import store_errors

if TYPE_CHECKING:
    import pandas

PAGE_FILE = "charts.html"
#: MLflow's limit on the length of a param.
_LONGEST = 6000


def log_sweep(
    run: RunInfo, settings: SweepSettings, table: Path, child_runs: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Log a sweep to a run.

    Parameters
    ----------
    run : RunInfo
        The run.
    settings : SweepSettings
        What was swept; its params.
    table : Path
        The table, an artifact.
    child_runs : str or None
        See `stagemeter.sweeping.children.child_rows`.
    notes : sequence of str
        What one should know of its pages.

    Raises
    ------
    TrackingError
        If the store cannot be reached or refuses.
    """
    summary = summarize(table)
    charts = sweep_charts(summary)
    note = sweep_markdown(summary, table.name, PAGE_FILE, notes)
    client = mlflow.MlflowClient()
    with store_errors():
        given = {name: value[:_LONGEST] for name, value in asdict(settings).items() if value is not None}
        document_hash = stable_hash(given)
        params, otherwise = missing_params(require_room(run.run_id, SWEEP, document_hash), given)
        model = settings.model or AnalysisSettings().model
        tags = {KIND: SWEEP, REPORT_HASH: document_hash, MODEL: model, MLFLOW_RUN_NOTE: note}
        client.log_batch(
            run.run_id,
            metrics=_metrics(summary),
            params=params,
            tags=[*(RunTag(name, value) for name, value in tags.items()), *otherwise],
        )
        pictures = {f"{name}.png": chart_picture(chart) for name, chart in charts.items()}
        log_files(run.run_id, {**pictures, PAGE_FILE: charts_page(charts, run.run_name or "Sweep")})
        client.log_artifact(run.run_id, str(table))
        if child_runs is not None:
            _log_children(client, run, child_rows(table, child_runs))


def _metrics(summary: SweepSummary) -> list[Metric]:
    """Least, mean and largest value of some columns, of all models together."""
    now = int(time.time() * 1000)
    metrics = [Metric("sweep/workloads", summary.rows, now, 0)]
    for column, part in summary.ranges.groupby("column", observed=True, sort=False):
        for what, value in (("min", part["min"].min()), ("mean", part["mean"].mean()), ("max", part["max"].max())):
            metrics.append(Metric(f"{column}/{what}", float(value), now, 0))
    return metrics


def _log_children(client: mlflow.MlflowClient, parent: RunInfo, rows: pandas.DataFrame) -> None:
    """Make a run of each row, in two calls: one that makes it, one that holds all of it."""
    for row in _records(rows):
        metrics = {name: value for name, value in row.items() if "/" in name and value == value}
        params = {name: str(value) for name, value in row.items() if "/" not in name}
        name = f"{row['mode']} {row['prompt_tokens']} + {row['new_tokens']} tokens, batch {row['batch_size']}"
        tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, MLFLOW_RUN_NAME: name, KIND: POINT, MODEL: str(row["model"])}
        child = client.create_run(parent.experiment_id, tags=tags, run_name=name)
        now = int(time.time() * 1000)
        client.log_batch(
            child.info.run_id,
            metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
            params=[Param(key, value) for key, value in params.items()],
        )
        client.set_terminated(child.info.run_id, RunStatus.to_string(RunStatus.FINISHED))


def _records(rows: pandas.DataFrame) -> Iterator[Mapping[str, Any]]:
    for _, row in rows.iterrows():
        yield row.to_dict()
