"""Lower bounds on the times of stages and requests, and the throughput at these bounds.

The work is that of the pairs that masks show: a kernel that skips the others is no faster than a bound of it. The same
functions take single numbers and arrays of them: a report has one workload, a sweep has many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, PREFILL, TOTAL, VISION, aggregates
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Bound, Peak, bound
from stagemeter.utilization.work import Work

if TYPE_CHECKING:
    from stagemeter.core.bound_types import Throughput


def stage_bounds(work: Work, peak: Peak, devices: int = 1) -> tuple[Bound, Bound]:
    """Return the least time of a stage, with the fewest bytes that it can move and with the most.

    Several devices share the work evenly, and their communication takes no time.
    """

    def with_bytes(moved: int) -> Bound:
        return bound(work.flops_causal / devices, moved / devices, peak)

    return with_bytes(work.least_bytes), with_bytes(work.moved_bytes)


def request_parts(stages: Iterable[str]) -> dict[str, list[str]]:
    """Return the stages that each bound of a request is the sum of, in the order of a request."""
    together = aggregates(stages)
    vision, forward = together.get(VISION, []), together[FORWARD]
    return {
        **{stage: [stage] for stage in vision},
        **({VISION: vision} if vision else {}),
        PREFILL: [PREFILL],
        FORWARD: forward,
        DECODE: [DECODE],
        DECODE_TOTAL: [DECODE],
        TOTAL: [*forward, DECODE],
    }


def throughput(times: Mapping[str, Any], workload: Workload) -> Throughput:
    """Return the throughput by name; None where a time is missing.

    The times are milliseconds by the names of `request_parts`.
    """

    def per_second(amount: Any, name: str) -> Any:
        milliseconds = times.get(name)
        return None if milliseconds is None else 1e3 * amount / milliseconds

    batch = workload.batch_size
    pages = per_second(batch * workload.pages, TOTAL) if workload.global_views else None
    return {
        "first_token_ms": times.get(FORWARD),
        "decode_tokens_per_second": per_second(batch * workload.decode_steps, DECODE_TOTAL),
        "tokens_per_second": per_second(batch * workload.new_tokens, TOTAL),
        "pages_per_hour": None if pages is None else 3600 * pages,
    }
