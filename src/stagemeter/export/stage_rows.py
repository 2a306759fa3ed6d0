"""Rows of the table of stages, which console, documents and data frames share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.report import request_total
from stagemeter.core.stage_names import DECODE, OTHER, TOTAL, stage_label
from stagemeter.core.units import digits_of, percentage, with_unit
from stagemeter.export.execution import differing_factors

#: Independent ways of counting.
TIERS = ("isolated", "extracted", "analytic")
#: Quantities of a stage over the whole request.
_OF_STAGES = ("macs", "flops", "flops_causal", "flops_executed", "activations", "bytes_read", "bytes_written")
#: Places in the rows of the table of stages.
EXECUTED, ACTIVATIONS = 3, 5


def stage_numbers(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the numbers of each stage over the whole request, and whether its counts agree."""
    totals = {quantity: request_total(report, quantity) for quantity in _OF_STAGES}
    return {
        name: {
            "params": stage["params"],
            **{quantity: total[name] for quantity, total in totals.items()},
            "passes": stage.get("steps", 1),
            "agreement": stage_agreement(report, name),
        }
        for name, stage in report["stages"].items()
    }


def report_records(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each stage over the whole request, and one for parameters of no stage, if there are any."""
    rows = [{"stage": name, **numbers} for name, numbers in stage_numbers(report).items()]
    other = sum(report["other_params"].values())
    nothing = {**dict.fromkeys(_OF_STAGES, 0), "passes": 0, "agreement": None}
    return [*rows, {"stage": OTHER, "params": other, **nothing}] if other else rows


def stage_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each stage over the whole request, without a header."""
    factors = differing_factors(report)
    return [
        row(
            stage_label(name, f"{DECODE} x {numbers['passes']:,}"),
            numbers,
            percentage(numbers["flops"], report["total"]["flops"]),
            factors.get(name),
        )
        for name, numbers in stage_numbers(report).items()
    ]


def total_row(report: Mapping[str, Any], label: str, share: str) -> list[str]:
    """Return the row of the request."""
    numbers = {**report["total"], "agreement": report["agreement"]["status"]}
    return row(label, numbers, share, differing_factors(report).get(TOTAL))


def row(label: str, numbers: Mapping[str, Any], share: str, factor: float | None = None) -> list[str]:
    """Return a row: label, parameters, FLOPs, executed FLOPs and factor, share, activations, bytes, agreement."""
    moved = with_unit(numbers["bytes_read"] + numbers["bytes_written"], "B")
    params, flops, activations = (with_unit(numbers[name]) for name in ("params", "flops", "activations"))
    executed = with_unit(numbers["flops_executed"]) + (f" (x{digits_of(factor)})" if factor is not None else "")
    return [label, params, flops, executed, share, activations, moved, numbers["agreement"]]


def without(rows: list[list[str]], columns: tuple[int, ...]) -> list[list[str]]:
    """Leave columns out."""
    return [[cell for place, cell in enumerate(row) if place not in columns] for row in rows]


def stage_agreement(report: Mapping[str, Any], name: str) -> str:
    """Say whether the tiers that counted a stage give the same FLOPs: ``3 of 3``, ``no``, or ``analytic only``.

    A model without closed forms has two tiers.
    """
    stage = report["stages"][name]
    possible = len(TIERS) - (report["closed_form"] is None)
    counted = {tier: stage[f"flops_{tier}"] for tier in TIERS if stage[f"flops_{tier}"] is not None}
    if len(counted) == 1:
        return f"{next(iter(counted))} only"
    if len(set(counted.values())) > 1:
        return "no"
    return f"{len(counted)} of {possible}"
