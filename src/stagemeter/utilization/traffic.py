"""The bytes that the devices of a serving engine move at least. Needs no torch.

A pass reads the weights of the language model once, however many requests it computes. A decode step of a request reads
its KV cache, and writes to it. What no page shows is left out: experts beyond those of one token, activations, the
caches that a prefill reads and writes, and vision encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.cost import item_sizes
from stagemeter.core.workload import Workload
from stagemeter.models.family import EXPERTS_READ
from stagemeter.profiling.length_sums import pair_sums
from stagemeter.profiling.lengths import RequestLengths
from stagemeter.utilization.mixed_lengths import LanguageForms, over_steps

#: A context that every decode step has at least: weights do not depend on it.
_CONTEXT = 2


def least_bytes(
    report: Mapping[str, Any],
    workload: Workload,
    lengths: RequestLengths | None,
    passes: float | None,
    engines: float = 1,
) -> int | None:
    """Return the bytes that some passes moved at least; None where passes, lengths or a closed form are not known.

    Parameters
    ----------
    report : mapping
        A static report.
    workload : Workload
        What all requests share: data types.
    lengths : RequestLengths or None
        Lengths of the requests that finished.
    passes : float or None
        Passes through the model, or some of them.
    engines : int
        Engines that they are of. Several may share the experts, each of which then holds some of them.
    """
    if lengths is None or not passes or report["closed_form"] is None:
        return None
    item, cache_item = item_sizes(workload.dtype, workload.kv_cache_dtype)
    sums = pair_sums(lengths)

    def forms(quantity: str) -> LanguageForms:
        return LanguageForms(report, workload, quantity)

    shared = {EXPERTS_READ: 0} if engines > 1 else {}
    plain, packed = (forms(quantity).step(_CONTEXT, **shared) for quantity in ("weight_reads", "packed_weight_bytes"))
    cached = sum(over_steps(forms(quantity), lengths, sums).least for quantity in ("kv_reads", "kv_writes"))
    return int(passes * (item * plain + packed) + cache_item * cached)
