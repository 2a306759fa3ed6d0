"""A static report becomes an MLflow run: params, metrics, tags, description and artifacts, in few calls."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Metric, Run, RunStatus, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

from stagemeter.core.metrics import report_values
from stagemeter.core.params import workload_params
from stagemeter.core.report import request_total
from stagemeter.core.workload import stable_hash
from stagemeter.export.json_file import json_text
from stagemeter.export.report import flops_chart, report_files, stage_agreement, summary_markdown
from stagemeter.modules.report import ModuleReport
from stagemeter.tracking.artifacts import log_files
from stagemeter.tracking.holding import missing_params, require_room
from stagemeter.tracking.labels import COUNTED_FOR, REPORT_HASH, SCHEMA, STATIC, workload_name, workload_tags
from stagemeter.tracking.module import log_module_report
from stagemeter.tracking.store import require_reachable, store_errors

if TYPE_CHECKING:
    from PIL import Image

#: Artifacts beside the files of the report.
CHART_FILE, PAGE_FILE, TABLE_FILE = "flops_per_stage.png", "page.png", "stages.json"


def log_static_report(
    report: Mapping[str, Any] | ModuleReport,
    page: Image.Image | None = None,
    contents: Mapping[str, str] | None = None,
) -> str:
    """Log a static report to MLflow.

    Parameters
    ----------
    report : mapping or ModuleReport
        What `DeepseekOCRStaticAnalyzer.generate_report` or `stagemeter.analyze` returned.
    page : PIL.Image.Image, optional
        Picture of the page as analyzed, where the report is of one.
    contents : mapping, optional
        What is in the report's files, by name, where that was worked out already.

    Returns
    -------
    str
        Id of the run: the active one, or one that is opened and ended for this.

    Raises
    ------
    StagemeterError
        If the active run holds another report.
    TrackingError
        If the store cannot be reached or refuses.

    Warns
    -----
    StagemeterWarning
        If the active run has params of other values, which MLflow keeps; the warning names both.
    """
    if isinstance(report, ModuleReport):
        name = f"{report.model} {report.mode}"
        log = partial(log_module_report, report=report)
    else:
        metadata = report["metadata"]
        name = workload_name(metadata["model"], metadata["workload"])
        log = partial(_log, report=report, page=page, contents=contents)
    active = mlflow.active_run()
    if active is not None:
        with store_errors():
            log(active.info.run_id)
        return str(active.info.run_id)
    require_reachable()
    with store_errors(), mlflow.start_run(run_name=name) as run:
        log(run.info.run_id)
        return str(run.info.run_id)


def log_counts(report: Mapping[str, Any], profile: Run) -> Run:
    """Log a report that was made for a profiling run as a static run beside it, whatever run is active.

    Returns
    -------
    mlflow.entities.Run
        The static run. It is FAILED or KILLED if not all of it could be logged.
    """
    client, metadata = mlflow.MlflowClient(), report["metadata"]
    name = f"{workload_name(metadata['model'], metadata['workload'])}, closed form"
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


def _log(run_id: str, report: Mapping[str, Any], page: Image.Image | None, contents: Mapping[str, str] | None) -> None:
    document_hash = stable_hash(report)
    run = require_room(run_id, STATIC, document_hash)
    params, otherwise = missing_params(
        run, workload_params(report["metadata"]["config"], report["metadata"]["workload"])
    )
    tags = [*_tags(report, document_hash), *otherwise, _tables_tag(run)]
    mlflow.MlflowClient().log_batch(run_id, metrics=_metrics(report), params=params, tags=tags)
    files: dict[str, str | bytes] = {**(report_files(report) if contents is None else contents)}
    files |= {CHART_FILE: flops_chart(report), TABLE_FILE: json_text(_stage_table(report))}
    if page is not None:
        files[PAGE_FILE] = _png(page)
    log_files(run_id, files)


def _png(page: Image.Image) -> bytes:
    stream = io.BytesIO()
    page.save(stream, format="png")
    return stream.getvalue()


def _tables_tag(run: Run) -> RunTag:
    """The tag by which MLflow's pages find tables: what `mlflow.log_table` sets, which adds rows to a table there."""
    listed = json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    table = {"path": TABLE_FILE, "type": "table"}
    return RunTag(MLFLOW_LOGGED_ARTIFACTS, json.dumps([*(one for one in listed if one != table), table]))


def _metrics(report: Mapping[str, Any]) -> list[Metric]:
    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, 0) for key, value in report_values(report).items()]
    curve = [Metric("decode_curve/flops", point["flops"], now, point["context"]) for point in report["decode_curve"]]
    return metrics + curve


def _tags(report: Mapping[str, Any], document_hash: str) -> list[RunTag]:
    tags = workload_tags(STATIC, report["metadata"]) | {
        "stagemeter.config_hash": report["metadata"]["config_hash"],
        SCHEMA: report["schema_version"],
        REPORT_HASH: document_hash,
        "stagemeter.agreement": report["agreement"]["status"],
        MLFLOW_RUN_NOTE: summary_markdown(report),
    }
    if report["roofline"] is not None:
        peak = report["roofline"]["peak"]
        tags |= {"stagemeter.peak": peak["name"], "stagemeter.peak_source": peak["source"]}
    return [RunTag(key, value) for key, value in tags.items()]


def _stage_table(report: Mapping[str, Any]) -> dict[str, list[Any]]:
    """One row per stage, as pandas splits a table: what MLflow's table view shows and compares between runs."""
    flops = request_total(report, "flops")
    macs = request_total(report, "macs")
    activations = request_total(report, "activations")
    stages = report["stages"]
    columns: dict[str, list[Any]] = {
        "stage": list(stages),
        "params": [stage["params"] for stage in stages.values()],
        "macs": [macs[name] for name in stages],
        "flops": [flops[name] for name in stages],
        "share": [
            round(flops[name] / report["total"]["flops"], 4) if report["total"]["flops"] else 0 for name in stages
        ],
        "activations": [activations[name] for name in stages],
        "passes": [stage.get("steps", 1) for stage in stages.values()],
        "agreement": [stage_agreement(report, name) for name in stages],
    }
    rows = zip(*columns.values(), strict=True)
    return {"columns": list(columns), "data": [list(row) for row in rows]}
