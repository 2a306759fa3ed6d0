"""Pair times with counts: MFU, MBU and roofline bounds of every stage. Needs no torch.

F is the model FLOPs of a stage (two per multiply-accumulate, attention dense), and V those of the pairs that masks
show. B is the bytes that it reads and writes, and t its time. P and W are the device's peak rates of arithmetic and of
memory.

- MFU = F / (t P), model FLOPs utilization: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
  appendix B. F is what the model's mathematics need, not what a kernel happens to execute. Causal, it is V / (t P).
- HFU is the same with the FLOPs that transformers executes, where it ran, hardware FLOPs utilization: ibid.
- MBU = B / (t W), the same of memory: "LLM Inference Performance Engineering: Best Practices", Databricks, 2023.
- The roofline bound is max(V / P, B / W), see `stagemeter.hardware.roofline`. A kernel that skips hidden pairs can
  reach it, and MFU can exceed 1 then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from stagemeter.core.report_upgrade import upgraded_report
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, PREFILL, TOTAL, VISION, aggregates
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Peak, bound_by
from stagemeter.profiling.devices import ONE_DEVICE, Devices
from stagemeter.profiling.document import with_sums
from stagemeter.profiling.profile import SESSION
from stagemeter.profiling.readers.engines.known import engine_with
from stagemeter.utilization.bounds import stage_bounds
from stagemeter.utilization.mixed_lengths import RequestsWork
from stagemeter.utilization.work import (
    Work,
    counted_work,
    counts_executed,
    differing_fields,
    execution_of,
    with_experts,
    work_at,
)

if TYPE_CHECKING:
    from stagemeter.core.bound_types import BoundBy, PeakRates

#: Changes with the keys of a pairing and their meaning.
SCHEMA_VERSION = "1.2"
#: Start of the reason why a stage without a count is missing.
NO_COUNT = "no count"

#: Shares, which cannot exceed one.
_SHARES: tuple[Literal["mfu_causal", "mbu", "roofline_fraction"], ...] = ("mfu_causal", "mbu", "roofline_fraction")
#: Above this MFU, a time was probably given in seconds.
_OTHER_UNIT = 100

_ASSUMPTIONS = (
    "FLOPs are those of the model's mathematics, two per multiply-accumulate; elementwise work is not counted",
    "mfu counts attention dense, mfu_causal and the roofline by the pairs that masks show: where a kernel skips the "
    "others, mfu can exceed 1",
    "hfu credits what transformers executes, and is given where that ran",
    "the peak is the dense one, without structured sparsity",
    "bytes are those of unfused operators: a fused kernel moves fewer, and a cache spares some, so MBU can exceed what "
    "the memory delivered",
    "bytes are those of the experts that ran, where that is known; otherwise a warning says between which bounds they "
    "are",
    "rates and utilization are of one device; several devices share the work of a request evenly",
    "decode is the mean step of the request; vision, forward and total are sums over stages that run one after another",
)


class PairedStage(TypedDict):
    """The utilization of a stage, or of several together. Numbers are of one pass, rates of one device."""

    time_ms: float
    passes: int
    flops: int | float
    flops_causal: int | float
    flops_executed: int | float | None
    bytes: int | float
    bytes_least: int | float
    mfu: float
    mfu_causal: float
    hfu: float | None
    mbu: float | None
    tflops: float
    gbps: float
    roofline_ms: float | None
    roofline_fraction: float | None
    bound_by: BoundBy


class PairedCounts(TypedDict):
    """The counts of a pairing for the whole request, and their source.

    `basis` is that of the report. `execution` says by stage why transformers executes other work than the model needs.
    """

    source: str
    basis: str
    execution: dict[str, list[str]]
    differences: dict[str, list[Any]]
    experts_read: dict[str, float]
    flops: dict[str, int]
    flops_causal: dict[str, int]
    flops_executed: dict[str, int | None]
    made_for_pairing: NotRequired[bool]


class Pairing(TypedDict):
    """Times paired with counts, see `pair`. Pairings of runs name the runs."""

    schema_version: str
    model: str
    workload: dict[str, Any]
    workload_hash: str
    counts: PairedCounts
    peak: PeakRates
    devices: dict[str, Any]
    stages: dict[str, PairedStage]
    missing: dict[str, str]
    flags: list[str]
    assumptions: list[str]
    no_hfu: str
    engine: NotRequired[dict[str, Any]]
    profile_run_id: NotRequired[str]
    profile_run_name: NotRequired[str]
    static_run_id: NotRequired[str]
    changed: NotRequired[bool]


def pair(
    report: Mapping[str, Any],
    times_ms: Mapping[str, float],
    workload: Workload,
    peak: Peak,
    experts_read: Mapping[str, float] | None = None,
    devices: Devices = ONE_DEVICE,
    requests: RequestsWork | None = None,
    no_hfu: str = "",
) -> Pairing:
    """Pair the times of a workload with its counts.

    Parameters
    ----------
    report : mapping
        A static report of the same architecture. For another workload, its closed form is evaluated.
    times_ms : mapping
        Own milliseconds by stage, see `stagemeter.profiling.profile.Profile`.
    workload : Workload
        The workload that was measured.
    peak : Peak
        Peak rates of one device.
    experts_read : mapping, optional
        Experts of a layer that a pass of each stage read, see `stagemeter.utilization.work.with_experts`. Without them,
        ``bytes``, ``gbps`` and ``mbu`` are upper bounds, ``bytes_least``, ``roofline_ms`` and ``roofline_fraction``
        lower bounds, and a flag says so. An impossible number raises StagemeterError.
    devices : Devices
        The devices. Rates and utilization are of one of those that worked on a request together.
    requests : RequestsWork, optional
        Work of the requests that the times are means over, if their lengths differ.
    no_hfu : str
        Why executed FLOPs of transformers are not what ran, see `why_no_hfu`. Empty: they are.

    Returns
    -------
    dict
        ``stages``: a `PairedStage` by stage, for ``vision`` and ``total``, and for ``forward`` if that was timed; None
        where it needs an unknown bandwidth. ``missing``: the reason for each other stage. ``no_hfu``: the reason where
        no stage has an HFU. ``counts``: FLOPs and their source. ``peak``, ``devices``, ``flags`` and ``assumptions``.
    """
    report = upgraded_report(report)
    counted = Workload.from_dict(report["metadata"]["workload"])
    work, source = counted_work(report, workload)
    if experts_read:
        work = with_experts(work, report, workload, experts_read)
    if requests is not None:
        work = _mean_work(work, report, workload, requests)
        no_hfu = no_hfu or "the requests have many lengths, and executed FLOPs are not summed over them"
    rows, missing = _rows(list(report["stages"]), work, times_ms, workload.decode_steps, peak, devices.per_request)
    if no_hfu:
        for row in rows.values():
            row["hfu"] = None
    return {
        "schema_version": SCHEMA_VERSION,
        "model": report["metadata"]["model"],
        "workload": workload.to_dict(),
        "workload_hash": workload.hash,
        "counts": {
            "source": source,
            "basis": report["basis"],
            "execution": execution_of(report, workload),
            "differences": differing_fields(counted, workload),
            "experts_read": dict(experts_read or {}),
            # Of the whole request: all decode steps.
            "flops": {stage: part.flops for stage, part in work.items()},
            "flops_causal": {stage: part.flops_causal for stage, part in work.items()},
            "flops_executed": {stage: part.flops_executed for stage, part in work.items()},
        },
        "peak": peak.to_dict(),
        "devices": {**asdict(devices), "per_request": devices.per_request},
        "stages": rows,
        "missing": missing,
        "flags": [
            *_disagreements(report),
            *_earlier(report),
            *(requests.flags() if requests is not None else ()),
            *_unsettled(rows, cached=requests is not None and requests.lengths.cached > 0),
            *_flags(rows),
        ],
        "assumptions": list(_ASSUMPTIONS),
        "no_hfu": no_hfu,
    }


def why_no_hfu(source: str) -> str:
    """Say why times from a source of a profile have no HFU; nothing where a session of transformers took them."""
    taken_by = source.partition(", read from ")[0]
    if taken_by == SESSION:
        return ""
    serving = engine_with(taken_by)
    if serving is not None:
        return f"what {serving.name} executed is not known"
    said = f"the source, {source}," if source else "the run"
    return f"{said} does not say what ran, and executed FLOPs are counted for transformers alone"


def _mean_work(
    work: Mapping[str, Work], report: Mapping[str, Any], workload: Workload, requests: RequestsWork
) -> dict[str, Work]:
    """Replace the FLOPs at the mean length by the mean over requests. Bytes stay those at the mean length."""
    settled = dict(work)
    for stage in requests.parts["flops"].keys() & work.keys():
        flops, causal = requests.mean("flops", stage), requests.mean("flops_causal", stage)
        # What transformers would execute for each of these lengths is not counted.
        settled[stage] = replace(work[stage], flops=flops, flops_causal=causal, flops_executed=None)
    if requests.lengths.cached and PREFILL in work:
        computed = max(1, requests.lengths.computed.total // requests.lengths.requests)
        least = work_at(report, replace(workload, prompt_tokens=computed))[PREFILL].least_bytes
        settled[PREFILL] = replace(settled[PREFILL], least_bytes=min(least, settled[PREFILL].least_bytes))
    return settled


def _rows(
    stages: Sequence[str], work: Mapping[str, Work], times_ms: Mapping[str, float], steps: int, peak: Peak, devices: int
) -> tuple[dict[str, PairedStage], dict[str, str]]:
    """Return a row for each stage and sum that has a time and a count, and the reason for each that lacks one."""
    times = {stage: time for stage, time in times_ms.items() if stage != TOTAL}
    if DECODE in times:
        times.setdefault(DECODE_TOTAL, times[DECODE] * steps)
    times = with_sums(times, steps, stages)
    if DECODE_TOTAL in times:
        # The work of decode is that of all steps.
        times[DECODE] = times.pop(DECODE_TOTAL)
    rows: dict[str, PairedStage] = {}
    missing: dict[str, str] = {}
    together = aggregates(stages)
    for stage in stages:
        passes = steps if stage == DECODE else 1
        if not passes:
            missing[stage] = "the request has no decode step"
        elif stage not in work:
            missing[stage] = f"{NO_COUNT}: the static report could not count it"
        elif stage not in times:
            missing[stage] = _why_no_time(stage, times_ms, together)
        else:
            rows[stage] = _row([work[stage]], times[stage], peak, passes, devices)
    sums = {name: together[name] for name in (FORWARD, VISION) if name in (times_ms if name == FORWARD else together)}
    sums[TOTAL] = [*together[FORWARD], *([DECODE] if steps else [])]
    for name, summands in sums.items():
        uncounted = [stage for stage in summands if stage not in work]
        if uncounted:
            missing[name] = f"{NO_COUNT} of {', '.join(uncounted)}"
        elif name not in times:
            missing[name] = f"no time of {', '.join(stage for stage in summands if stage not in times)}"
        else:
            rows[name] = _row([work[stage] for stage in summands], times[name], peak, 1, devices)
    return rows, missing


def _why_no_time(stage: str, times_ms: Mapping[str, float], aggregates: Mapping[str, list[str]]) -> str:
    for together, stages in aggregates.items():
        if stage in stages and together in times_ms:
            return f"no time of its own: it was timed as part of {together}"
    return "no time: it was not measured"


def _row(works: Iterable[Work], time_ms: float, peak: Peak, passes: int, devices: int) -> PairedStage:
    """Return work and time per pass, and rates and utilization per device."""
    parts = list(works)
    flops = sum(part.flops for part in parts)
    causal = sum(part.flops_causal for part in parts)
    executed = [part.flops_executed for part in parts if part.flops_executed is not None]
    runs = sum(executed) if len(executed) == len(parts) else None
    moved = sum(part.moved_bytes for part in parts)
    least, most = zip(*(stage_bounds(part, peak, devices) for part in parts), strict=True)
    roofline_ms = sum(part.ms for part in least)
    seconds = time_ms / 1e3 * devices
    known = peak.bytes_per_second is not None
    return {
        "time_ms": time_ms / passes,
        "passes": passes,
        "flops": _per_pass(flops, passes),
        "flops_causal": _per_pass(causal, passes),
        "flops_executed": None if runs is None else _per_pass(runs, passes),
        "bytes": _per_pass(moved, passes),
        "bytes_least": _per_pass(sum(part.least_bytes for part in parts), passes),
        "mfu": flops / (seconds * peak.flops_per_second),
        "mfu_causal": causal / (seconds * peak.flops_per_second),
        "hfu": None if runs is None else runs / (seconds * peak.flops_per_second),
        "mbu": moved / (seconds * peak.bytes_per_second) if peak.bytes_per_second is not None else None,
        "tflops": flops / seconds / 1e12,
        "gbps": moved / seconds / 1e9,
        "roofline_ms": roofline_ms / passes if known else None,
        "roofline_fraction": roofline_ms / time_ms if known else None,
        "bound_by": bound_by(least, most),
    }


def _per_pass(total: int, passes: int) -> int | float:
    # An integer where possible.
    return total // passes if total % passes == 0 else total / passes


def _earlier(report: Mapping[str, Any]) -> list[str]:
    """Flag a report of an earlier schema, see `counts_executed`."""
    if not counts_executed(report):
        return []
    return [
        "the static report is of schema 1.x: mfu credits what transformers executes, and mfu_causal the same with half "
        "of causal self-attention. A run can be faster than the roofline. Analyze again for what the model needs"
    ]


def _disagreements(report: Mapping[str, Any]) -> list[str]:
    """Flag tiers of the static report that disagree, and operators without a formula."""
    return [
        *(f"the tiers of the static report disagree: {line}" for line in report["agreement"]["differences"]),
        *(
            f"{stage}: the static report leaves out {', '.join(operators)}, for which it has no formula"
            for stage, operators in report["unsupported_ops"].items()
        ),
    ]


def _flags(rows: Mapping[str, PairedStage]) -> list[str]:
    """Flag what exceeds the device: nothing runs faster than its peak."""
    flags = []
    for stage, row in rows.items():
        above = {name: share for name in _SHARES if (share := row[name]) is not None and share > 1}
        if not above:
            continue
        values = ", ".join(f"{name} {share:.3f}" for name, share in above.items())
        if row["mfu_causal"] > _OTHER_UNIT:
            why = "is its time in milliseconds?"
        elif "mfu_causal" in above:
            why = "the time, the workload or the peak is not that of this run"
        else:
            why = "the peak bandwidth is not this device's, or caches and fused kernels saved traffic"
        flags.append(f"{stage}: above 1: {values}: {why}")
    return flags


def _unsettled(rows: Mapping[str, PairedStage], cached: bool) -> list[str]:
    """Flag the stages whose bytes are bounds, since the experts that ran are not known."""
    stages = [
        name for name, row in rows.items() if row["bytes_least"] < row["bytes"] and (not cached or name == DECODE)
    ]
    if not stages:
        return []
    return [
        f"{', '.join(stages)}: the bytes of the experts that ran are not known, so bytes, GB/s and MBU are at most "
        "what is given, and the roofline at least"
    ]
