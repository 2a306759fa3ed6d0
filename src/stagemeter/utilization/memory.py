"""Bound a report's workload on a device: time, throughput, and whether it fits. Needs no torch.

The bounds on time are those of `stagemeter.hardware.roofline`. The memory is a lower bound, too. It consists of:

- the weights that any pass reads;
- the KV cache, before a stage and after it;
- the working set of a stage: operands and result of its most demanding operator.

A process also needs results that later operators wait for, the allocator's reserve and the driver's context. So a
workload above this bound cannot fit, and one below it still may not. The bound is for whole passes in unfused
operators, as in transformers. An engine that cuts a prompt into chunks, or encodes a few views at a time, needs less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal

from stagemeter.core.cost import item_sizes
from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Peak, bound_by
from stagemeter.models.blocks import larger
from stagemeter.models.chunks import most_over_chunks
from stagemeter.models.closed_form import pass_variables
from stagemeter.models.families import family_named
from stagemeter.models.family import Family, Form, bytes_read_of_weights
from stagemeter.utilization.bounds import request_parts, stage_bounds, throughput
from stagemeter.utilization.work import Work, work_of_report

if TYPE_CHECKING:
    from stagemeter.core.bound_types import Memory, Roofline, StageBound

_Time = Literal["roofline_ms", "roofline_ms_every_expert"]
_NOTES = (
    "times are lower bounds: every stage at the device's peak, one after another; FLOPs are those of the pairs that "
    "masks show; bytes are those of operators that are not fused with one another",
    "memory is a lower bound: weights, KV cache, and the operands and result of one operator, without the allocator's "
    "reserve, the driver's context and other live tensors; what exceeds the device cannot fit, and what does not may "
    "still not fit",
    "the experts that tokens choose are not known before they run: the bounds let all tokens choose the same ones, and "
    "the numbers of every expert let them choose as many as they can reach",
)
_OF_EXECUTED = (
    "no family knows what this model needs: times are those of what transformers executes, less the hidden pairs of "
    "masks that could be counted, so an implementation that executes less can be faster"
)
_WEIGHTS_NOT_KNOWN = (
    "how the checkpoint stores its weights is not known here, so whether the workload fits is not known either: bytes "
    "and times are those of the same architecture with every weight in the data type of the workload"
)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The memory that a workload needs at least, in bytes.

    `weights` are those that some pass reads, as the checkpoint stores them; `kv_cache` is that at the end of the
    request; `working_sets` are by stage with a closed form. `needed` is the most memory in use at once, in `stage`.
    """

    weights: int
    kv_cache: int
    working_sets: dict[str, int]
    needed: int
    stage: str


def roofline_section(
    report: Mapping[str, Any], family: Family[Any], architecture: Any, peak: Peak, weights_known: bool = True
) -> Roofline:
    """Return the bounds of a report's workload on a device.

    Parameters
    ----------
    report : mapping
        A static report of a model of `family` with the sizes `architecture`.
    peak : Peak
        The device. Without its bandwidth, times of memory are None. Without the size of its memory, so is what fits.
        Another data type than the workload's raises StagemeterError.
    weights_known : bool
        Whether it is known how the checkpoint stores its weights. Otherwise, what fits is None.

    Returns
    -------
    dict
        ``bounds``: times by stage with a count, and for ``vision``, ``forward`` (vision and prefill), ``decode_total``
        (``decode`` is the mean step) and ``total``. ``roofline_ms`` is the larger of ``compute_ms`` and ``memory_ms``,
        and sums add over stages. Names with ``every_expert`` assume that the tokens read every expert that they can
        reach, rather than the fewest. ``throughput``: the rates at these bounds, all None if the workload does not fit.
        ``memory``: a `MemoryNeed`, with ``device_bytes``, ``fits`` and ``largest_batch_size``, 0 if one page does not
        fit. ``peak`` and ``notes``.
    """
    workload = Workload.from_dict(report["metadata"]["workload"])
    if peak.dtype != workload.dtype:
        raise StagemeterError(
            f"peak: that of {peak.name} is of {peak.dtype}, the workload of {workload.dtype}. Give one data type"
        )
    bounds = _bounds(family, work_of_report(report), workload, peak)
    memory = _memory(family, architecture, workload, peak.memory_bytes, weights_known)
    # What does not fit has no throughput.
    rated = {} if memory["fits"] is False else bounds
    return {
        "peak": peak.to_dict(),
        "bounds": bounds,
        "throughput": throughput(_times(rated, "roofline_ms"), workload),
        "throughput_every_expert": throughput(_times(rated, "roofline_ms_every_expert"), workload),
        "memory": memory,
        "notes": [
            *_NOTES,
            *((_OF_EXECUTED,) if report["basis"] == "executed" else ()),
            *(() if weights_known else (_WEIGHTS_NOT_KNOWN,)),
        ],
    }


def memory_need(family: Family[Any], architecture: Any, workload: Workload) -> MemoryNeed:
    """Return the memory that a workload needs at least, by closed form."""
    sizes = item_sizes(workload.dtype, workload.kv_cache_dtype)
    weights = bytes_read_of_weights(family, architecture, sizes[0])
    held = held_by_stage(family, architecture, workload, *sizes)
    if not workload.decode_steps:
        held = {name: memory for name, memory in held.items() if name != DECODE}
    fullest = max(held, key=lambda name: held[name].most)
    return MemoryNeed(
        weights=weights,
        kv_cache=held[DECODE if DECODE in held else PREFILL].cache,
        working_sets={name: memory.working_set for name, memory in held.items() if memory.working_set is not None},
        needed=weights + held[fullest].most,
        stage=fullest,
    )


@dataclass(frozen=True, slots=True)
class HeldByStage:
    """The memory in use beside the weights while a stage runs, in bytes.

    `cache` is the KV cache when the stage has ended, `most` the most of cache and working set at once. The working set
    is operands and result of the most demanding operator; None without a closed form.
    """

    cache: int
    working_set: int | None
    most: int


def held_by_stage(
    family: Family[Any], architecture: Any, workload: Workload, item_size: int, cache_item_size: int
) -> dict[str, HeldByStage]:
    """Return the memory in use beside the weights, by stage. A workload of arrays, as in a sweep, gives arrays.

    Without a decode step, ``decode`` holds what the prefill left.
    """
    decoder, prompt, steps = family.decoder(architecture), workload.prompt_tokens, workload.decode_steps
    some_steps = 1 * (steps > 0)
    cached, held = 0, {}
    for stage in family.stages:
        demand = None
        form = stage.needed
        if form.working_set is not None:
            of_pass = partial(_working_set, form, architecture)
            if stage.name == PREFILL and workload.chunk_tokens is not None:
                (held_at_once,) = most_over_chunks(of_pass, workload)
            else:
                (held_at_once,) = of_pass(workload, True)
            demand = held_at_once * item_size * (some_steps if stage.name == DECODE else 1)
        # A pass may extend the cache after its most demanding operator. What earlier passes added is there before.
        before_last = cached
        if stage.name == DECODE:
            before_last = decoder.kv_cache_elements(workload, prompt + steps - some_steps) * cache_item_size
            cached = decoder.kv_cache_elements(workload, prompt + steps) * cache_item_size
        elif stage.name == PREFILL:
            cached = decoder.kv_cache_elements(workload, prompt) * cache_item_size
        most = larger(before_last + (0 if demand is None else demand), cached)
        held[stage.name] = HeldByStage(cached, demand, most)
    return held


def _working_set(form: Form[Any], architecture: Any, workload: Workload, is_last: bool) -> list[Any]:
    """Return the elements that the most demanding operator of a stage holds, see `Stage.working_set`."""
    assert form.working_set is not None
    calls = pass_variables(form, architecture, workload, is_last)
    # A stage that does not run, such as the encoder of a cached page, holds nothing.
    return [reduce(larger, (form.working_set(architecture, call) for call in calls), 0)]


def cache_of_a_token(report: Mapping[str, Any]) -> int | None:
    """Return the bytes that a new token adds to the KV cache of a request, before windows are full.

    States of a constant size, which each token writes anew, add nothing. None without a closed form.
    """
    if report["closed_form"] is None:
        return None
    workload = replace(Workload.from_dict(report["metadata"]["workload"]), batch_size=1)
    family = family_named(report["metadata"]["family"])
    decoder = family.decoder(family.architecture_from_sizes(report["closed_form"]["architecture"]))
    cached = [decoder.kv_cache_elements(workload, tokens) for tokens in (1, 2)]
    return (cached[1] - cached[0]) * item_sizes(workload.dtype, workload.kv_cache_dtype)[1]


def largest_batch(needed: Callable[[int], int], available: int) -> int:
    """Find the largest batch that fits into the available bytes; 0 if a batch of one does not.

    `needed` returns the bytes of a batch, more for a larger one.
    """
    if needed(1) > available:
        return 0
    fits, too_large = 1, 2
    while needed(too_large) <= available:
        fits, too_large = too_large, 2 * too_large
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if needed(middle) <= available else (fits, middle)
    return fits


def _memory(family: Family[Any], architecture: Any, workload: Workload, device: int | None, known: bool) -> Memory:
    """Return the memory that a workload needs, and whether a device has it; None where that is not known."""
    available = device if known else None

    def needed(batch: int) -> int:
        return memory_need(family, architecture, replace(workload, batch_size=batch)).needed

    need = memory_need(family, architecture, workload)
    return {
        "weights_bytes": need.weights,
        "kv_cache_bytes": need.kv_cache,
        "working_set_bytes": need.working_sets,
        "needed_bytes": need.needed,
        "needed_in": need.stage,
        "device_bytes": device,
        "fits": None if available is None else need.needed <= available,
        "largest_batch_size": None if available is None else largest_batch(needed, available),
    }


def _bounds(family: Family[Any], work: Mapping[str, Work], workload: Workload, peak: Peak) -> dict[str, StageBound]:
    """Bound every stage with a count and every complete sum, in the order of a request."""
    steps = workload.decode_steps
    rows = request_parts(stage.name for stage in family.stages)
    if not steps:
        rows = {name: [stage for stage in stages if stage != DECODE] for name, stages in rows.items()}
    return {
        name: _bound([work[stage] for stage in stages], peak, steps if name == DECODE else 1)
        for name, stages in rows.items()
        if stages and all(stage in work for stage in stages)
    }


def _bound(parts: Sequence[Work], peak: Peak, passes: int) -> StageBound:
    least, most = zip(*(stage_bounds(part, peak) for part in parts), strict=True)
    known = peak.bytes_per_second is not None

    def per_pass(times: Iterable[float | None]) -> float | None:
        return _added(time or 0.0 for time in times) / passes if known else None

    return {
        "compute_ms": _added(part.compute_ms for part in least) / passes,
        "memory_ms": per_pass(part.memory_ms for part in least),
        "roofline_ms": per_pass(part.ms for part in least),
        "bound_by": bound_by(least, most),
        "memory_ms_every_expert": per_pass(part.memory_ms for part in most),
        "roofline_ms_every_expert": per_pass(part.ms for part in most),
    }


def _added(times: Iterable[float]) -> float:
    """Add from left to right, as arrays do: from Python 3.12 on, `sum` corrects rounding errors of floats."""
    return reduce(add, times, 0.0)


def _times(bounds: Mapping[str, StageBound], quantity: _Time) -> dict[str, Any]:
    return {name: row[quantity] for name, row in bounds.items()}
