"""Readers of the metrics: functions that find a quantity's values in a document of plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, ENGINE, FORWARD, OTHER, REQUEST, TOTAL

Values = dict[str, Any]
Reader = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def stages(*quantities: str, adapter: bool = False) -> Reader:
    """Read quantities of a report's stages, and add them up."""

    def read(report: Mapping[str, Any]) -> Values:
        stages, total, beside = report["stages"], report["total"], report.get("adapter")
        return {
            **{name: sum(stage[quantity] for quantity in quantities) for name, stage in stages.items()},
            DECODE_TOTAL: sum(stages[DECODE][f"{quantity}_total"] for quantity in quantities),
            TOTAL: sum(total[quantity] for quantity in quantities),
            "adapter": sum(beside["total"][quantity] for quantity in quantities) if adapter and beside else None,
        }

    return read


def flops(report: Mapping[str, Any]) -> Values:
    """Read FLOPs of stages and sums."""
    return {**stages("flops", adapter=True)(report), FORWARD: report["total"]["flops_forward"]}


def params(report: Mapping[str, Any]) -> Values:
    """Read parameters of stages and in all."""
    total, adapter = report["total"], report.get("adapter")
    return {
        **{name: stage["params"] for name, stage in report["stages"].items()},
        OTHER: sum(report["other_params"].values()),
        TOTAL: total["params"],
        "active": total["params_active"],
        "adapter": None if adapter is None else adapter["params"],
    }


def memory(report: Mapping[str, Any]) -> Values:
    """Read the memory that a workload needs."""
    total, roofline = report["total"], report["roofline"]
    values = {"weights": total["weight_bytes"], "kv_cache": total["kv_cache_bytes"]}
    if roofline is not None:
        memory = roofline["memory"]
        values |= {"needed": memory["needed_bytes"], "largest_batch_size": memory["largest_batch_size"]}
    return values


def tokens(report: Mapping[str, Any]) -> Values:
    """Read the tokens of the request."""
    workload = report["metadata"]["workload"]
    return {name: workload[f"{name}_tokens"] for name in ("image", "prompt", "new")}


def bounds(report: Mapping[str, Any]) -> Values:
    """Read the least times."""
    roofline = report["roofline"]
    return {} if roofline is None else {name: row["roofline_ms"] for name, row in roofline["bounds"].items()}


def at_roofline(report: Mapping[str, Any]) -> Values:
    """Read the throughput at the roofline."""
    roofline = report["roofline"]
    return {} if roofline is None else dict(roofline["throughput"])


def load(report: Mapping[str, Any]) -> Values:
    """Read the devices that the whole requests of a rate keep busy."""
    found = report.get("load")
    whole = {} if found is None else found["stages"][TOTAL]
    return {name: whole.get(name) for name in ("devices", "devices_at_mfu")}


def speculation(report: Mapping[str, Any]) -> Values:
    """Read what a token costs with drafted ones."""
    found = report.get("speculation")
    shares = {} if found is None else found["of_plain"]
    return {**({"tokens_per_step": found["tokens_per_step"]} if found else {}), **shares}


def module(*quantities: str) -> Reader:
    """Read quantities of the parts of a module's report, and add them up; None where one is unknown."""

    def read(document: Mapping[str, Any]) -> Values:
        parts = {**document["stages"], OTHER: document["other"], TOTAL: document["total"]}
        found = {name: [part[quantity] for quantity in quantities] for name, part in parts.items()}
        return {name: None if None in values else sum(values) for name, values in found.items()}

    return read


def unsupported(document: Mapping[str, Any]) -> Values:
    """Read the calls of operators without a formula."""
    parts = {**document["stages"], OTHER: document["other"], TOTAL: document["total"]}
    return {name: sum(part["unsupported"].values()) for name, part in parts.items()}


def times(document: Mapping[str, Any]) -> Values:
    """Read the measured times."""
    request = document["request_median_ms"] if document["request_ms"] else None
    return {**document["time_ms"], REQUEST: request}


def decile(name: str) -> Reader:
    """Read a decile of the repeats."""
    return lambda document: {stage: spread[name] for stage, spread in document["spread_ms"].items()}


def measured(quantity: str) -> Reader:
    """Read a profile's own values, which it keeps under names of metrics."""

    def read(document: Mapping[str, Any]) -> Values:
        prefix, found = f"{quantity}/", {**document["throughput"], **document["metrics"]}
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

    return read


def paired(quantity: str) -> Reader:
    """Read a quantity of a pairing's stages, and of its serving engine."""

    def read(pairing: Mapping[str, Any]) -> Values:
        engine = pairing.get("engine", {})
        values = {stage: row.get(quantity) for stage, row in pairing["stages"].items()}
        return {**values, ENGINE: engine.get(quantity)} if quantity.startswith(("mfu", "mbu_")) else values

    return read


def trained(quantity: str) -> Reader:
    """Read a quantity of a training's steps, and of their stages."""
    return lambda steps: {part: row.get(quantity) for part, row in steps["parts"].items()}


def of_log(quantity: str) -> Reader:
    """Read a quantity of a log's stages."""
    return lambda costs: {name: stage[quantity] for name, stage in [*costs["stages"].items(), (TOTAL, costs[TOTAL])]}


def log_counts(costs: Mapping[str, Any]) -> Values:
    """Read numbers of requests and lines."""
    left_out = {how: costs[how]["lines"] for how in ("skipped", "failed")}
    return {"requests": costs["requests"], "pages": costs["pages"], **left_out}


def log_tokens(costs: Mapping[str, Any]) -> Values:
    """Read the tokens of a log."""
    return {name: costs[f"{name}_tokens"] for name in ("prompt", "cached", "computed", "output")}


def ratios(comparison: Mapping[str, Any]) -> Values:
    """Read the ratios of a comparison."""
    return {
        f"{quantity}/{row['stage']}": row["ratios"][comparison["number"]]
        for quantity, compared in comparison["quantities"].items()
        for row in compared["rows"]
    }
