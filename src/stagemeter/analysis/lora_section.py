"""The LoRA section of a report: costs by stage, apart from those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from stagemeter.analysis.tiers import StageCount
from stagemeter.core.cost import Cost, item_sizes, total
from stagemeter.core.stage_names import PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.lora import Adapter, AdapterFound

if TYPE_CHECKING:
    from stagemeter.core.report_types import Adapter as AdapterSection
    from stagemeter.core.report_types import AdapterCost


def adapter_section(
    adapter: Adapter, found: AdapterFound | None, counts: Mapping[str, StageCount], workload: Workload
) -> AdapterSection:
    """Build the ``adapter`` section of a report; `found` is the adapter in the built model, or None."""
    sizes = item_sizes(workload.dtype, workload.kv_cache_dtype)
    requests = {name: count.request_adapter or Cost() for name, count in counts.items()}
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
            name: {**_numbers(count.adapter, sizes), "flops_request": requests[name].flops}
            for name, count in counts.items()
            if count.adapter.macs
        },
        "total": _numbers(total(requests.values()), sizes),
    }


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


def _numbers(cost: Cost, sizes: tuple[int, int]) -> AdapterCost:
    values = cost.quantities(*sizes)
    del values["flops_causal"]
    return cast("AdapterCost", values)
