"""A sweep as one MLflow run with its table and charts, and as child runs where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Param, RunInfo, RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from stagemeter.core.metrics import in_runs
from stagemeter.core.settings import AnalysisSettings
from stagemeter.core.workload import stable_hash
from stagemeter.export.sweep import PAGE_FILE, sweep_files, sweep_markdown, table_csv
from stagemeter.sweeping.build import SweepSettings
from stagemeter.sweeping.chosen_rows import child_rows
from stagemeter.sweeping.summary import SweepSummary, summarize
from stagemeter.tracking.document import log_document, metrics_now
from stagemeter.tracking.labels import KIND, MODEL, POINT, SWEEP
from stagemeter.tracking.store import store_errors

if TYPE_CHECKING:
    import pandas

#: MLflow's limit on the length of a param.
_LONGEST = 6000


def log_sweep(
    run: RunInfo, settings: SweepSettings, table: Path, child_runs: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Log a sweep to a run. The settings become params, and the table an artifact.

    See `stagemeter.sweeping.chosen_rows.child_rows` for `child_runs`. The notes are about the sweep's pages.
    """
    summary = summarize(table)
    note = sweep_markdown(summary, table.name, PAGE_FILE, notes)
    client = mlflow.MlflowClient()
    given = {name: value[:_LONGEST] for name, value in asdict(settings).items() if value is not None}
    with store_errors():
        log_document(
            run.run_id,
            SWEEP,
            stable_hash(given),
            params=given,
            metrics=metrics_now(_values(summary)),
            tags={MODEL: settings.model or AnalysisSettings().model, MLFLOW_RUN_NOTE: note},
            files={**sweep_files(summary, run.run_name or "Sweep"), **table_csv(table)},
        )
        client.log_artifact(run.run_id, str(table))
        if child_runs is not None:
            _log_children(client, run, child_rows(table, child_runs))


def _values(summary: SweepSummary) -> dict[str, float]:
    """Return the least and largest value of some columns over all rows, and the mean of rows that are comparable.

    These are of one model, and requests that are processed together are equally many.
    """
    values: dict[str, float] = {}
    comparable = summary.by_batch is None and summary.ranges["model"].nunique() == 1
    for column, part in summary.ranges.groupby("column", observed=True, sort=False):
        ends = {"min": part["min"].min(), "max": part["max"].max()}
        if comparable:
            ends["mean"] = part["mean"].iloc[0]
        values |= {f"{column}/{name}": float(value) for name, value in ends.items()}
    return values | {"sweep/workloads": float(summary.rows)}


def _log_children(client: mlflow.MlflowClient, parent: RunInfo, rows: pandas.DataFrame) -> None:
    """Make a run of each row, in two calls: one creates it, and one logs everything."""
    for row in _records(rows):
        metrics = in_runs({name: value for name, value in row.items() if "/" in name and value == value})
        params = {name: str(value) for name, value in row.items() if "/" not in name}
        name = f"{row['mode']} {row['prompt_tokens']} + {row['new_tokens']} tokens, batch {row['batch_size']}"
        tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, MLFLOW_RUN_NAME: name, KIND: POINT, MODEL: str(row["model"])}
        child = client.create_run(parent.experiment_id, tags=tags, run_name=name)
        client.log_batch(
            child.info.run_id,
            metrics=metrics_now({key: float(value) for key, value in metrics.items()}),
            params=[Param(key, value) for key, value in params.items()],
        )
        client.set_terminated(child.info.run_id, RunStatus.to_string(RunStatus.FINISHED))


def _records(rows: pandas.DataFrame) -> Iterator[Mapping[str, Any]]:
    for _, row in rows.iterrows():
        yield row.to_dict()
