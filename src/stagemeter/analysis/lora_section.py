"""The LoRA section of a report: costs by stage, apart from those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from stagemeter.analysis.tiers import StageCount
from stagemeter.core.cost import Cost, item_sizes, total
from stagemeter.core.stage_names import PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import all_steps, needed_adapter_cost
from stagemeter.models.family import Stage
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.lora import Adapter, AdapterFound

if TYPE_CHECKING:
    from stagemeter.core.report_types import Adapter as AdapterSection
    from stagemeter.core.report_types import AdapterCost


def adapter_section(
    model: ModelDescription,
    adapter: Adapter,
    found: AdapterFound | None,
    counts: Mapping[str, StageCount],
    workload: Workload,
) -> AdapterSection:
    """Build the ``adapter`` section of a report; `found` is the adapter in the built model, or None."""
    sizes = item_sizes(workload.dtype, workload.kv_cache_dtype)
    requests = {name: count.request_adapter or Cost() for name, count in counts.items()}
    needed = {name: _needed(name, model, adapter, count, workload) for name, count in counts.items()}
    # A pass over the prompt reads each of the adapter's matrices once.
    params = counts[PREFILL].adapter.weight_reads if found is None else found.params
    targets = [adapter.targets] if isinstance(adapter.targets, str) else list(adapter.targets)
    return {
        "source": adapter.source,
        "rank": adapter.rank,
        "targets": targets,
        "params": params,
        "weight_bytes": params * sizes[0],
        "stages": {
            name: {
                **_numbers(needed[name][0], count.adapter, sizes),
                "flops_request": needed[name][1].flops,
                "flops_request_executed": requests[name].flops,
            }
            for name, count in counts.items()
            if count.adapter.macs
        },
        "total": _numbers(total(request for _, request in needed.values()), total(requests.values()), sizes),
    }


def _needed(
    name: str, model: ModelDescription, adapter: Adapter, count: StageCount, workload: Workload
) -> tuple[Cost, Cost]:
    """Return the cost of an adapter where a stage runs as the model needs: of one pass, and of the whole request."""
    stage: Stage[Any] = model.family.stage(name)
    if stage.needed.adapter is None:
        return count.adapter, count.request_adapter or Cost()
    cost_at = partial(needed_adapter_cost, stage, model.architecture, adapter)
    one = cost_at(workload)
    if stage.whole_pass != "decode":
        return one, one
    return one, all_steps(cost_at, workload, stage.needed.bends(model.architecture, workload))


def adapter_notes(adapter: Adapter, found: AdapterFound | None) -> list[str]:
    """Return notes to read before an adapter's numbers."""
    if found is None:
        return [
            "no model was built, so layers and experts outside of the decoder that the adapter may name are not checked"
        ]
    notes = []
    if found.outside:
        notes.append(
            f"{adapter.source} names {len(found.outside):,} modules that are no linear layers of the decoder, such as "
            f"{found.outside[0]}: what it would cost there is not counted"
        )
    if found.nowhere:
        notes.append(f"{adapter.source} names {', '.join(found.nowhere)}, which the model does not have")
    return notes


def _numbers(needed: Cost, executed: Cost, sizes: tuple[int, int]) -> AdapterCost:
    values = needed.quantities(*sizes) | executed.quantities(*sizes, suffix="_executed")
    return cast("AdapterCost", {name: value for name, value in values.items() if not name.startswith("flops_causal")})
