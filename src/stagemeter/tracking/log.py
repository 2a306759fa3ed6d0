"""Reports of models and of any module, as MLflow runs; each uploaded report once."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric, Run, RunStatus
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.metrics import in_runs, module_values, report_values
from stagemeter.core.params import as_params, module_params, report_params
from stagemeter.core.report import Report
from stagemeter.core.report_upgrade import upgraded_report
from stagemeter.core.workload import stable_hash
from stagemeter.export.json_file import json_text
from stagemeter.export.module import module_files, module_markdown
from stagemeter.export.report import flops_chart, report_files, summary_markdown
from stagemeter.export.stage_rows import stage_numbers
from stagemeter.modules.report import MODULE_SCHEMA_VERSION, ModuleReport
from stagemeter.tracking.document import log_document, metrics_now
from stagemeter.tracking.labels import (
    ARCHITECTURE_HASH,
    BASIS,
    COUNTED_FOR,
    KIND,
    MODEL,
    MODULE,
    PEAK,
    REPORT_HASH,
    SCHEMA,
    STATIC,
    VERSIONS,
    WORKLOAD_HASH,
    experiment_of,
    in_words,
    shortened,
    workload_name,
    workload_tags,
)
from stagemeter.tracking.registry import find_version, put_costs
from stagemeter.tracking.run import tracked_run
from stagemeter.tracking.runs import all_experiments, search_runs
from stagemeter.tracking.store import require_reachable, store_errors

if TYPE_CHECKING:
    from PIL import Image

#: Artifacts beside the files of the report.
CHART_FILE, PAGE_FILE, TABLE_FILE = "flops_per_stage.png", "page.png", "stages.json"


def log_static_report(
    report: Mapping[str, Any] | ModuleReport,
    page: Image.Image | None = None,
    contents: Mapping[str, str] | None = None,
    model_version: str | None = None,
) -> str:
    """Log a static report to MLflow.

    Parameters
    ----------
    report : mapping or ModuleReport
        A static report, see `stagemeter.analyze_model`, or a report of `stagemeter.analyze`.
    page : PIL.Image.Image, optional
        Picture of the page as analyzed, where the report is of one.
    contents : mapping, optional
        Contents of the report's files by name, where they are made already.
    model_version : str, optional
        Version of a registered model that gets the costs as tags: ``NAME`` for the newest, ``NAME/VERSION`` or
        ``NAME@ALIAS``. If it was made from a logged model, that gets them as metrics.

    Returns
    -------
    str
        Id of the run: the active one, or one that is opened and ended for this.

    Raises
    ------
    StagemeterError
        If the active run holds another report, or there is no such version.
    TrackingError
        If the store cannot be reached or refuses.

    Warns
    -----
    StagemeterWarning
        If the active run has params of other values, which MLflow keeps; the warning names both.
    """
    if isinstance(report, ModuleReport):
        name = f"{report.model} {report.mode}"
        log = partial(_log_module, report=report)
    else:
        report = upgraded_report(report)
        name = _name(report)
        log = partial(_log, report=report, page=page, contents=contents)
    active = mlflow.active_run()
    if active is None:
        require_reachable()
    version = None if model_version is None else find_version(model_version)
    with store_errors(), nullcontext(active) if active is not None else mlflow.start_run(run_name=name) as run:
        log(run.info.run_id)
        if version is not None:
            put_costs(version, report, run.info.run_id)
        return str(run.info.run_id)


def log_counts(report: Mapping[str, Any], profile: Run) -> Run:
    """Log a report that was made for a profiling run as a static run beside it. The active run is left alone.

    The static run is FAILED or KILLED if not all of it could be logged.
    """
    client, name = mlflow.MlflowClient(), shortened(f"{_name(report)}, closed form")
    tags = {**resolve_tags(), COUNTED_FOR: profile.info.run_id}
    run_id = client.create_run(profile.info.experiment_id, tags=tags, run_name=name).info.run_id
    try:
        _log(run_id, report, None, None)
    except BaseException as error:
        status = RunStatus.KILLED if isinstance(error, KeyboardInterrupt) else RunStatus.FAILED
        client.set_terminated(run_id, RunStatus.to_string(status))
        raise
    client.set_terminated(run_id)
    return client.get_run(run_id)


def _name(report: Mapping[str, Any]) -> str:
    metadata, roofline = report["metadata"], report["roofline"]
    return workload_name(metadata["model"], metadata["workload"], roofline and roofline["peak"]["name"])


def _log(run_id: str, report: Mapping[str, Any], page: Image.Image | None, contents: Mapping[str, str] | None) -> None:
    files: dict[str, str | bytes] = {**(report_files(report) if contents is None else contents)}
    files |= {CHART_FILE: flops_chart(report), TABLE_FILE: json_text(_stage_table(report))}
    if page is not None:
        files[PAGE_FILE] = _png(page)
    log_document(
        run_id,
        STATIC,
        stable_hash(report),
        params=report_params(report),
        metrics=_metrics(report),
        tags=_tags(report),
        files=files,
        tables=[TABLE_FILE],
    )


def _png(page: Image.Image) -> bytes:
    stream = io.BytesIO()
    page.save(stream, format="png")
    return stream.getvalue()


def _metrics(report: Mapping[str, Any]) -> list[Metric]:
    metrics = metrics_now(in_runs(report_values(report)))
    now = metrics[0].timestamp
    curve = [Metric("decode_curve/flops", point["flops"], now, point["context"]) for point in report["decode_curve"]]
    return metrics + curve


def _tags(report: Mapping[str, Any]) -> dict[str, str]:
    tags = workload_tags(report["metadata"]) | {
        SCHEMA: report["schema_version"],
        BASIS: report["basis"],
        "stagemeter.agreement": report["agreement"]["status"],
        MLFLOW_RUN_NOTE: summary_markdown(report),
    }
    if report["roofline"] is not None:
        tags[PEAK] = report["roofline"]["peak"]["name"]
    return tags


def _log_module(run_id: str, report: ModuleReport) -> None:
    document = report.to_dict()
    tags = {
        MODEL: report.model,
        SCHEMA: MODULE_SCHEMA_VERSION,
        WORKLOAD_HASH: report.workload_hash,
        ARCHITECTURE_HASH: report.architecture_hash,
        MLFLOW_RUN_NOTE: module_markdown(report),
        VERSIONS: in_words(report.versions),
    }
    log_document(
        run_id,
        MODULE,
        stable_hash(document),
        params=as_params(module_params(document)),
        metrics=metrics_now(in_runs(module_values(document))),
        tags=tags,
        files=module_files(report),
    )


def _stage_table(report: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return one row a stage, as pandas splits a table, for MLflow's table view."""
    columns = ["stage", "params", "macs", "flops", "share", "activations", "passes", "agreement"]
    whole = report["total"]["flops"]
    rows = (
        {"stage": name, "share": round(row["flops"] / whole, 4) if whole else 0, **row}
        for name, row in stage_numbers(report).items()
    )
    return {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}


def upload_report(report: Report, experiment: str | None = None) -> tuple[str, bool]:
    """Log a report unless a run holds it already. Return the run's id, and whether it was logged now.

    Log to the experiment, and search it. None: log to MLflow's default, and search all.
    """
    require_reachable()
    metadata = report["metadata"]
    # Finished runs only: an interrupted run does not hold the whole report.
    condition = (
        f"tags.`{WORKLOAD_HASH}` = '{metadata['workload_hash']}' and tags.`{REPORT_HASH}` = '{stable_hash(report)}' "
        f"and tags.`{KIND}` = '{STATIC}' and attributes.status = 'FINISHED'"
    )
    with store_errors():
        found = next(search_runs(_places(experiment), condition), None)
    if found is not None:
        return str(found.info.run_id), False
    with tracked_run(None, _name(report), experiment, experiment_of(metadata["model"])) as run:
        log_static_report(report)
    return str(run.run_id), True


def _places(experiment: str | None) -> list[str]:
    """Return the ids of the experiments to search."""
    if experiment is None:
        return all_experiments()
    found = mlflow.MlflowClient().get_experiment_by_name(experiment)
    return [] if found is None else [str(found.experiment_id)]
