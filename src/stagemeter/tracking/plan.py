"""A plan of devices as an MLflow run: what was asked as params, the answer as metrics and a description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow.entities import RunInfo
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.params import as_params
from stagemeter.core.workload import stable_hash
from stagemeter.export.plan import plan_files, plan_markdown
from stagemeter.tracking.document import log_document, metrics_now
from stagemeter.tracking.labels import MODEL, PLAN
from stagemeter.tracking.store import store_errors
from stagemeter.utilization.fleet import Plan


def log_plan(run: RunInfo, plan: Plan, settings: Mapping[str, Any]) -> None:
    """Log a plan to a run. The settings are those of the request that were given."""
    batches = dict.fromkeys(choice.batch_size for choice in plan.choices if choice.batch_size is not None)
    asked = {
        **settings,
        "model": plan.model,
        f"{plan.unit}s_per_day": f"{plan.per_day:.15g}",
        "device": ",".join(peak.name for peak in plan.peaks),
        "batch_size": ",".join(map(str, batches)) or None,
        "price": ",".join(
            f"{choice.device}={choice.price_per_hour:g}/h" for choice in plan.best if choice.price_per_hour
        )
        or None,
        "mfu": plan.mfu,
        "from_run": plan.source,
    }
    with store_errors():
        log_document(
            run.run_id,
            PLAN,
            stable_hash(plan.to_dict()),
            params=as_params({name: value for name, value in asked.items() if value is not None}),
            metrics=metrics_now(_values(plan)),
            tags={MODEL: plan.model, MLFLOW_RUN_NOTE: plan_markdown(plan)},
            files=plan_files(plan),
        )


def _values(plan: Plan) -> dict[str, float]:
    """Return the answer, and the devices and costs of each kind of device; those at the roofline are lower bounds."""
    values: dict[str, float] = {"plan/batch_size": float(plan.best[0].batch_size or 0)}
    for choice in plan.best:
        assert choice.speed is not None
        for name in ("devices", "cost_per_day", "batch_seconds"):
            value = getattr(choice.speed, name)
            if value is not None:
                values.setdefault(f"plan/{name}", float(value))
                values[f"plan_{name}/{choice.device}"] = float(value)
    return values
