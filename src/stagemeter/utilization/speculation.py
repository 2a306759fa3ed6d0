"""The section of a report on speculative decoding: its work and bounds beside those of plain decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from stagemeter.analysis.speculation import Speculation as Asked
from stagemeter.analysis.speculation import SpeculativeCosts, speculative_costs
from stagemeter.core.cost import Cost, item_sizes
from stagemeter.core.stage_names import DECODE
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Peak
from stagemeter.models.lookup import ModelDescription
from stagemeter.utilization.bounds import stage_bounds
from stagemeter.utilization.work import Work, work_of_report

if TYPE_CHECKING:
    from stagemeter.core.speculation_types import Speculation, SpeculativeBounds, SpeculativeWork

_QUANTITIES = ("flops", "flops_causal", "bytes_read", "bytes_written")


def speculation_section(
    report: Mapping[str, Any],
    model: ModelDescription,
    asked: Asked,
    peak: Peak | None = None,
) -> Speculation:
    """Return the section of a report of a model; see `stagemeter.core.speculation_types.Speculation`."""
    acceptance, drafter = asked.resolved(model)
    workload = Workload.from_dict(report["metadata"]["workload"])
    costs = speculative_costs(model, workload, acceptance, drafter)
    sizes = item_sizes(workload.dtype, workload.kv_cache_dtype)
    tokens, decode = costs.tokens * workload.batch_size, report["stages"][DECODE]

    def work(cost: Cost, over: int = 0) -> SpeculativeWork:
        values = cost.quantities(*sizes)
        return cast("SpeculativeWork", {name: values[name] / over if over else values[name] for name in _QUANTITIES})

    plain: Any = {name: decode[f"{name}_total"] / tokens for name in _QUANTITIES}
    both = work(costs.verification + costs.drafting, tokens)
    bounds = None if peak is None else _bounds(report, costs, sizes, tokens, peak)
    moved, plain_moved = (each["bytes_read"] + each["bytes_written"] for each in (both, plain))
    return {
        "drafted": acceptance.drafted,
        "acceptance": float(acceptance.probability),
        "draft": drafter.name,
        "draft_params": drafter.parameters,
        "exact": acceptance.exact,
        "tokens": costs.tokens,
        "tokens_per_step": float(acceptance.tokens_per_step),
        "steps": costs.steps,
        "verification": work(costs.verification),
        "drafting": work(costs.drafting),
        "prompt": work(costs.prompt),
        "per_token": both,
        "plain_per_token": plain,
        "bounds": bounds,
        "of_plain": {
            "flops": both["flops"] / plain["flops"],
            "bytes": moved / plain_moved,
            "time": None if bounds is None else bounds["speculative_ms"] / bounds["plain_ms"],
        },
        "notes": costs.notes,
    }


def _bounds(
    report: Mapping[str, Any], costs: SpeculativeCosts, sizes: tuple[int, int], tokens: int, peak: Peak
) -> SpeculativeBounds | None:
    if peak.bytes_per_second is None:
        return None

    def least(works: list[Work]) -> tuple[float, float]:
        bounds = [stage_bounds(work, peak) for work in works]
        alike, different = (sum(bound.ms for bound in each) / tokens for each in zip(*bounds, strict=True))
        return alike, different

    def spared(cost: Cost, alike: Cost) -> Any:
        return cost.bytes_read(*sizes) - alike.bytes_read(*sizes)

    parts = zip((costs.verification, costs.drafting), costs.alike, strict=True)
    speculative = least([Work.of_cost(cost, sizes, spared(cost, alike)) for cost, alike in parts])
    plain = least([work_of_report(report)[DECODE]])
    return {
        "speculative_ms": speculative[0],
        "plain_ms": plain[0],
        "speculative_ms_every_expert": speculative[1],
        "plain_ms_every_expert": plain[1],
    }
