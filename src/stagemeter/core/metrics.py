"""Reports and profiles as flat names and values: what MLflow gets as metrics and params, and what is compared.

Needs neither torch nor MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.setting import EVERY, MODES, Row, table
from stagemeter.core.settings import AnalysisSettings, MeasuringSettings
from stagemeter.core.workload import OWN, TEXT, Workload


def workload_params(config: Mapping[str, Any], workload: Mapping[str, Any]) -> dict[str, str]:
    """Return what was asked for, and the page and the prompt that it became, as the params of a run."""
    asked, became = _logged(AnalysisSettings), _logged(Workload)
    own = workload["mode"] == OWN
    values = {row.param: config.get(name) for name, row in asked.items() if not (own and row.setting.models == MODES)}
    # Of an imported profile, what was measured can differ from what was asked for.
    values |= {name: workload.get(name) for name in became}
    if workload.get("view_size") is not None:
        del values["base_size"], values["image_size"]
    if workload["mode"] == TEXT:
        every = {row.param for row in (*asked.values(), *became.values()) if row.setting.models == EVERY}
        values = {name: value for name, value in values.items() if name in every} | {"mode": TEXT}
    always = {row.param for row in asked.values() if row.setting.logged}
    return as_params({name: value for name, value in values.items() if value is not None or name in always})


def _logged(owner: type) -> dict[str, Row]:
    return {name: row for name, row in table(owner).items() if row.setting.logged is not False}


def as_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as params: text, sizes as ``2x3``, and ``none`` for no value."""
    return {key: _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return "none" if value is None else str(value)


def report_values(report: Mapping[str, Any]) -> dict[str, int | float]:
    """Numbers of a report by name, such as ``flops/sam``; ``decode`` is one step, ``decode_total`` all of them."""
    stages, total, workload = report["stages"], report["total"], report["metadata"]["workload"]
    decode = stages["decode"]
    values: dict[str, int | float] = {f"params/{name}": stage["params"] for name, stage in stages.items()}
    values["params/other"] = sum(report["other_params"].values())
    values["params/total"] = total["params"]
    values["params/active"] = total["params_active"]
    for quantity in ("flops", "macs", "activations"):
        values |= {f"{quantity}/{name}": stage[quantity] for name, stage in stages.items()}
        values[f"{quantity}/decode_total"] = decode[f"{quantity}_total"]
        values[f"{quantity}/total"] = total[quantity]
    values["flops/forward"] = total["flops_forward"]
    values |= {f"bytes/{name}": stage["bytes_read"] + stage["bytes_written"] for name, stage in stages.items()}
    values["bytes/decode_total"] = decode["bytes_read_total"] + decode["bytes_written_total"]
    values["bytes/total"] = total["bytes_read"] + total["bytes_written"]
    values["memory/weights"] = total["weight_bytes"]
    values["memory/kv_cache"] = total["kv_cache_bytes"]
    adapter = report.get("adapter")
    if adapter is not None:
        values["params/adapter"] = adapter["params"]
        values["flops/adapter"] = adapter["total"]["flops"]
        values["bytes/adapter"] = adapter["total"]["bytes_read"] + adapter["total"]["bytes_written"]
    values["tokens/image"] = workload["image_tokens"]
    values["tokens/prompt"] = workload["prompt_tokens"]
    values["tokens/new"] = workload["new_tokens"]
    return values | _bounds(report["roofline"])


def _bounds(roofline: Mapping[str, Any] | None) -> dict[str, int | float]:
    """Lower bounds of a device, where one was asked about."""
    if roofline is None:
        return {}
    values = {f"roofline_ms/{name}": row["roofline_ms"] for name, row in roofline["bounds"].items()}
    values |= {f"at_roofline/{name}": value for name, value in roofline["throughput"].items()}
    values["memory/needed"] = roofline["memory"]["needed_bytes"]
    values["memory/largest_batch_size"] = roofline["memory"]["largest_batch_size"]
    return {name: value for name, value in values.items() if value is not None}


def module_params(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a module was counted with, as the params of a run; see `stagemeter.modules.report`."""
    metadata = document["metadata"]
    stages = (f"{name}: {' '.join(stage['modules'])}" for name, stage in document["stages"].items())
    named = {key: metadata[key] for key in ("model", "mode", "dtype", "counted_on")}
    return {**named, "inputs": "; ".join(metadata["inputs"]), "stages": "; ".join(stages)}


#: Quantities of a stage of a module, and the metrics that they become.
_MODULE_QUANTITIES = (
    "params",
    "params_trainable",
    "flops",
    "flops_forward",
    "flops_backward",
    "flops_recomputed",
    "flops_causal",
    "macs",
    "activations",
)


def module_values(document: Mapping[str, Any]) -> dict[str, int | float]:
    """Numbers of a module's report by name, such as ``flops/encoder``; what is not known has no name."""
    parts = {**document["stages"], "other": document["other"], "total": document["total"]}
    values: dict[str, int | float] = {}
    for name, part in parts.items():
        values |= {
            f"{quantity}/{name}": part[quantity] for quantity in _MODULE_QUANTITIES if part[quantity] is not None
        }
        if part["bytes_read"] is not None:
            values[f"bytes/{name}"] = part["bytes_read"] + part["bytes_written"]
        values[f"unsupported_calls/{name}"] = sum(part["unsupported"].values())
    return values


def profile_params(document: Mapping[str, Any]) -> dict[str, str]:
    """What was measured, how and on what, as the params of a run; see `stagemeter.profiling.document`."""
    metadata = document["metadata"]
    config = metadata["config"]
    values = {name: config[name] for name in table(MeasuringSettings) if name in config}
    hardware = document["hardware"]
    if "device" in hardware:
        # `device` is what was asked for, such as cuda:0; this is what answered to it.
        values["device_name"] = hardware["device"]
    values |= {name: hardware[name] for name in ("devices", "devices_source") if name in hardware}
    return workload_params(config, metadata["workload"]) | as_params({"source": document["source"], **values})


def profile_values(document: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a profile by name, such as ``time_ms/sam``: of several repeats the median, and its deciles."""
    values = {f"time_ms/{stage}": time for stage, time in document["time_ms"].items()}
    if document["request_ms"]:
        values["time_ms/request"] = document["request_median_ms"]
    for stage, spread in document["spread_ms"].items():
        values |= {f"time_ms_{decile}/{stage}": spread[decile] for decile in ("p10", "p90")}
    values |= {**document["throughput"], **document["metrics"]}
    if document["stages_of_request"] is not None:
        values["time_share/stages_of_request"] = document["stages_of_request"]
    return values
