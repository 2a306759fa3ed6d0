"""Costs on a version of a registered model, and on the logged model that it was made from.

Tags of versions are texts, which a search compares by ``=`` and ``LIKE`` alone (``SearchModelVersionUtils`` in
mlflow/utils/search_utils.py, version 3.17). So a search finds the versions that were counted at the same workload, and
their integers are exact. Metrics of logged models also have an order: ``search_logged_models`` compares and sorts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from stagemeter.core.errors import StagemeterError
from stagemeter.core.units import page_count_of
from stagemeter.modules.report import ModuleReport
from stagemeter.tracking.document import metrics_now
from stagemeter.tracking.labels import WORKLOAD_HASH
from stagemeter.tracking.store import store_errors
from stagemeter.utilization.memory import cache_of_a_token

_SCHEME, _LOGGED = "models:/", "models:/m-"
#: Answers of a registry that say that the given version cannot be used.
_REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "FEATURE_DISABLED", "ENDPOINT_NOT_FOUND")
PREFIX, RUN = "stagemeter.", "stagemeter.run_id"


def find_version(text: str) -> ModelVersion:
    """Return a version of a registered model, or raise StagemeterError.

    Parameters
    ----------
    text : str
        ``NAME`` for the newest version, ``NAME/VERSION``, ``NAME@ALIAS``, or one of these after ``models:/``.
    """
    client, wanted = mlflow.MlflowClient(), text.removeprefix(_SCHEME)
    with store_errors():
        try:
            name, given, version = wanted.partition("/")
            if "@" in wanted:
                versions = [client.get_model_version_by_alias(*wanted.rsplit("@", 1))]
            elif given:
                versions = [client.get_model_version(name, version)]
            else:
                versions = client.get_registered_model(name).latest_versions
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            reason = str(error).strip().splitlines()[0].rstrip(". ")
            raise StagemeterError(
                f"register: {text!r} is no version of a registered model: {reason}. Give NAME, NAME/VERSION or "
                "NAME@ALIAS of one"
            ) from None
    if not versions:
        raise StagemeterError(f"register: the registered model {name!r} has no version. Register one first")
    return max(versions, key=lambda one: int(one.version))


def put_costs(version: ModelVersion, report: Mapping[str, Any] | ModuleReport, run_id: str) -> None:
    """Tag a version with the costs of a report, and log them as metrics of its logged model, if it has one.

    The metrics are logged by the run of the report.
    """
    costs = costs_of(report)
    work = report.workload_hash if isinstance(report, ModuleReport) else report["metadata"]["workload_hash"]
    tags = {**{f"{PREFIX}{name}": str(value) for name, value in costs.items()}, WORKLOAD_HASH: work, RUN: run_id}
    client, source = mlflow.MlflowClient(), str(version.source)
    logged = version.model_id or (source.removeprefix(_SCHEME) if source.startswith(_LOGGED) else None)
    with store_errors():
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
        if logged is not None:
            metrics = metrics_now({name: float(value) for name, value in costs.items()})
            of_model = [Metric(one.key, one.value, one.timestamp, one.step, model_id=logged) for one in metrics]
            client.log_batch(run_id, metrics=of_model)


def costs_of(report: Mapping[str, Any] | ModuleReport) -> dict[str, int | float]:
    """Return the costs that a version has: parameters, FLOPs of a page and KV cache of a token, in bytes.

    A text has no page, and counts as a request; a module has a call. Pages of a request share its FLOPs evenly. Without
    a closed form, it is not known what of the cache grows with tokens, and what is a state of a constant size.
    """
    if isinstance(report, ModuleReport):
        return {"params": report.total.params, "flops/call": report.total.flops}
    workload, total = report["metadata"]["workload"], report["total"]
    has_page = bool(workload["global_views"])
    flops, parts = total["flops"], workload["batch_size"] * (page_count_of(workload) if has_page else 1)
    cached = cache_of_a_token(report)
    return {
        "params": total["params"],
        f"flops/{'page' if has_page else 'request'}": flops // parts if flops % parts == 0 else flops / parts,
        **({} if cached is None else {"kv_cache/token": cached}),
    }
