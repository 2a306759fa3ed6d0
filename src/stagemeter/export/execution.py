"""Lines on stages where an implementation executes other work than the model needs: by how much, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.cost import differing_factor
from stagemeter.core.report import request_total
from stagemeter.core.stage_names import TOTAL
from stagemeter.core.units import digits_of

#: The adapter's name among the stages, and why transformers executes other work for it.
ADAPTER, _BESIDE = "adapter", "runs an adapter on the inputs of the layer beside it, whatever the model needs of them"


def differing_factors(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the factors of stages, total and adapter that differ. Decode counts with all its steps."""
    needed = {**request_total(report, "flops"), TOTAL: report["total"]["flops"]}
    executed = {**request_total(report, "flops_executed"), TOTAL: report["total"]["flops_executed"]}
    if report.get("adapter") is not None:
        beside = report["adapter"]["total"]
        needed[ADAPTER], executed[ADAPTER] = beside["flops"], beside["flops_executed"]
    factors = {name: differing_factor(executed[name], flops) for name, flops in needed.items()}
    return {name: factor for name, factor in factors.items() if factor is not None}


def execution_lines(report: Mapping[str, Any]) -> list[str]:
    """Say by how much each stage that differs does so, and why; or that a report has no model FLOPs."""
    of = report["implementation"]
    name = f"{of['name']} {of['version']}"
    if report["basis"] == "executed":
        return [f"FLOPs are those that {name} executes: what the model needs was not counted"]
    lines = []
    for stage, factor in differing_factors(report).items():
        if stage != TOTAL:
            clauses = [_BESIDE] if stage == ADAPTER else report["stages"][stage]["execution"]
            why = "; ".join(f"it {clause}" for clause in clauses)
            lines.append(f"{stage}: {name} executes {digits_of(factor)} times the model's FLOPs" + (why and f": {why}"))
    return lines
