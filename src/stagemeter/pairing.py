"""Times and counts become utilization: MFU, MBU and roofline bounds of every stage. Needs no torch.

Definitions, with F the FLOPs of a stage (two per multiply-accumulate, attention dense), B the bytes that it reads and
writes, t its time, P and W the device's peak rates of arithmetic and of memory:

- MFU = F / (t P), model FLOPs utilization: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
  appendix B. F is what the model's mathematics need, not what a kernel happens to execute.
- MBU = B / (t W), the same of memory: "LLM Inference Performance Engineering: Best Practices", Databricks, 2023.
- The roofline bound is max(F / P, B / W), see `stagemeter.hardware.roofline`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.cost import ITEM_SIZES
from stagemeter.hardware.roofline import Peak, bound
from stagemeter.models.closed_form import evaluate_workload
from stagemeter.models.deepseek_ocr import FAMILY
from stagemeter.profiling.profile import AGGREGATES, DECODE, DECODE_TOTAL, FORWARD, TOTAL, VISION
from stagemeter.report import request_total
from stagemeter.workload import Workload

#: Changes with every change of the pairing's keys or of what they mean.
SCHEMA_VERSION = "1.0"

Pairing = dict[str, Any]

_ASSUMPTIONS = (
    "FLOPs are those of the model's mathematics, two per multiply-accumulate; elementwise work is not counted",
    "mfu counts attention dense, mfu_causal with causal self-attention halved",
    "the peak is the dense one, without structured sparsity",
    "bytes are those of operators that are not fused with one another: a kernel that fuses several moves fewer, and "
    "what stays in a cache is not moved, so that MBU can come out above what the memory delivered",
    "bytes of a mixture of experts are an upper bound: of every expert that so many tokens can reach, which is more "
    "than ran where tokens share experts; MBU, GB/s and, where memory sets it, the roofline of prefill and decode are "
    "then too high, and a run can be faster than such a bound",
    "decode is the mean step of the request; vision, forward and total are sums over stages that run one after another",
)
#: Source: vLLM, ``vllm/v1/metrics/perf.py``: its components are AttentionMetrics, FfnMetrics and UnembedMetrics.
_ENGINE_EXPLANATION = (
    "vLLM estimates attention, feed-forward network and output head of the language model and leaves the vision "
    "encoders out (vllm/v1/metrics/perf.py); it estimates what it scheduled on one GPU, without what a prefix cache "
    "spared it, and ours is the work of whole requests on all of them"
)


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage has to do in one request.

    Attributes
    ----------
    flops, flops_causal : int
        Floating-point operations, attention dense and with causal self-attention halved.
    moved_bytes : int
        Bytes read and written.
    """

    flops: int
    flops_causal: int
    moved_bytes: int


def work_of_report(report: Mapping[str, Any]) -> dict[str, Work]:
    """Work of each stage as a report has it: of ``decode`` all steps. Stages without a count are left out."""
    quantities = {
        name: request_total(report, name) for name in ("flops", "flops_causal", "bytes_read", "bytes_written")
    }
    return {
        stage: Work(
            flops=quantities["flops"][stage],
            flops_causal=quantities["flops_causal"][stage],
            moved_bytes=quantities["bytes_read"][stage] + quantities["bytes_written"][stage],
        )
        for stage, found in report["stages"].items()
        if found["source"] != "none"
    }


def work_at(report: Mapping[str, Any], workload: Workload) -> dict[str, Work]:
    """Work of each stage at another workload, by the closed form that a report carries: of ``decode`` all steps."""
    costs = evaluate_workload(report["closed_form"], FAMILY, workload)
    costs[DECODE] = costs.pop(DECODE_TOTAL)
    item_size = ITEM_SIZES[workload.dtype]
    return {
        stage: Work(cost.flops, cost.flops_causal, cost.bytes_read(item_size) + cost.bytes_written(item_size))
        for stage, cost in costs.items()
    }


def counted_work(report: Mapping[str, Any], workload: Workload) -> tuple[dict[str, Work], str]:
    """Work of each stage at a workload, and whether it is what a report counted or what its closed form gives."""
    if Workload.from_dict(report["metadata"]["workload"]).hash == workload.hash:
        return work_of_report(report), "static report"
    return work_at(report, workload), "closed form of the static report"


def pair(report: Mapping[str, Any], times_ms: Mapping[str, float], workload: Workload, peak: Peak) -> Pairing:
    """Pair the times of a workload with its counts.

    Parameters
    ----------
    report : mapping
        A static report of the same architecture. Where it is of another workload, its closed form is evaluated.
    times_ms : mapping
        Own milliseconds by stage, see `stagemeter.profiling.profile.Profile`.
    workload : Workload
        What was measured.
    peak : Peak
        What it ran on.

    Returns
    -------
    dict
        ``stages``: per stage, and for ``vision`` and ``total``, ``time_ms``, ``flops``, ``flops_causal``, ``bytes``,
        ``mfu``, ``mfu_causal``, ``mbu``, ``tflops``, ``gbps``, ``roofline_ms``, ``roofline_fraction`` and
        ``bound_by``; what needs a bandwidth is None without one. ``missing``: why others have none. ``counts``: where
        the counts are from. ``peak``, ``flags`` and ``assumptions``.
    """
    counted = Workload.from_dict(report["metadata"]["workload"])
    work, source = counted_work(report, workload)
    rows, missing = _rows(work, times_ms, workload.decode_steps, peak)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": report["metadata"]["model"],
        "workload": workload.to_dict(),
        "workload_hash": workload.hash,
        "counts": {
            "source": source,
            "differences": differing_fields(counted, workload),
            # Of the whole request, so of decode all steps.
            "flops": {stage: part.flops for stage, part in work.items()},
        },
        "peak": peak_dict(peak),
        "stages": rows,
        "missing": missing,
        "flags": [*_disagreements(report), *_flags(rows)],
        "assumptions": list(_ASSUMPTIONS),
    }


def differing_fields(counted: Workload, measured: Workload) -> dict[str, list[Any]]:
    """Fields in which two workloads are different work, with the value of each."""
    mine, other = counted.hashed_fields(), measured.hashed_fields()
    return {name: [mine[name], other[name]] for name in mine if mine[name] != other[name]}


def peak_dict(peak: Peak) -> dict[str, Any]:
    """A peak as plain data, in the units that people use."""
    return {
        "name": peak.name,
        "dtype": peak.dtype,
        "tflops": peak.flops_per_second / 1e12,
        "gbps": None if peak.bytes_per_second is None else peak.bytes_per_second / 1e9,
        "source": peak.source,
    }


def _rows(
    work: Mapping[str, Work], times_ms: Mapping[str, float], steps: int, peak: Peak
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Work out every stage that has both a time and a count, then the sums, and say why others are missing."""
    requests = {stage: time for stage, time in times_ms.items() if stage not in (DECODE, VISION, FORWARD, TOTAL)}
    if DECODE_TOTAL in requests:
        requests[DECODE] = requests.pop(DECODE_TOTAL)
    elif DECODE in times_ms:
        requests[DECODE] = times_ms[DECODE] * steps
    rows: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for stage in (found.name for found in FAMILY.stages):
        passes = steps if stage == DECODE else 1
        if not passes:
            missing[stage] = "the request has no decode step"
        elif stage not in work:
            missing[stage] = "no count: the static report could not count it"
        elif stage not in requests:
            missing[stage] = _why_no_time(stage, times_ms)
        else:
            rows[stage] = _row([work[stage]], requests[stage], peak, passes)
    parts = [*AGGREGATES[FORWARD], *([DECODE] if steps else [])]
    sums = {VISION: AGGREGATES[VISION], TOTAL: parts}
    if FORWARD in times_ms:
        sums = {FORWARD: AGGREGATES[FORWARD], **sums}
    for name, stages in sums.items():
        time = _time_of_sum(name, stages, requests, times_ms)
        uncounted = [stage for stage in stages if stage not in work]
        if uncounted:
            missing[name] = f"no count of {', '.join(uncounted)}"
        elif time is None:
            missing[name] = f"no time of {', '.join(stage for stage in stages if stage not in requests)}"
        else:
            rows[name] = _row([work[stage] for stage in stages], time, peak, 1)
    return rows, missing


def _time_of_sum(
    name: str, stages: Iterable[str], requests: Mapping[str, float], times_ms: Mapping[str, float]
) -> float | None:
    """Time of several stages together: the sum of theirs, with those that were timed as one in place of their parts."""
    if all(stage in requests for stage in stages):
        return sum(requests[stage] for stage in stages)
    left, time = list(stages), 0.0
    for together in (FORWARD, VISION):
        parts = AGGREGATES[together]
        if together in times_ms and all(stage in left for stage in parts):
            time += times_ms[together]
            left = [stage for stage in left if stage not in parts]
    if not all(stage in requests for stage in left):
        return None
    return time + sum(requests[stage] for stage in left)


def _why_no_time(stage: str, times_ms: Mapping[str, float]) -> str:
    for together, stages in AGGREGATES.items():
        if stage in stages and together in times_ms:
            return f"no time of its own: it was timed as part of {together}"
    return "no time: it was not measured"


def _row(works: Iterable[Work], time_ms: float, peak: Peak, passes: int) -> dict[str, Any]:
    """One line of the table: the work and the time of all passes, given per pass."""
    parts = list(works)
    flops = sum(part.flops for part in parts)
    causal = sum(part.flops_causal for part in parts)
    moved = sum(part.moved_bytes for part in parts)
    bounds = [bound(part.flops, part.moved_bytes, peak) for part in parts]
    roofline_ms = sum(found.ms for found in bounds)
    whole = bound(flops, moved, peak)
    seconds = time_ms / 1e3
    known = peak.bytes_per_second is not None
    return {
        "time_ms": time_ms / passes,
        "passes": passes,
        "flops": _per_pass(flops, passes),
        "flops_causal": _per_pass(causal, passes),
        "bytes": _per_pass(moved, passes),
        "mfu": flops / (seconds * peak.flops_per_second),
        "mfu_causal": causal / (seconds * peak.flops_per_second),
        "mbu": moved / (seconds * peak.bytes_per_second) if peak.bytes_per_second is not None else None,
        "tflops": flops / seconds / 1e12,
        "gbps": moved / seconds / 1e9,
        "roofline_ms": roofline_ms / passes if known else None,
        "roofline_fraction": roofline_ms / time_ms if known else None,
        "bound_by": whole.by,
    }


def _per_pass(total: int, passes: int) -> int | float:
    # Exact where it comes out even.
    return total // passes if total % passes == 0 else total / passes


def _disagreements(report: Mapping[str, Any]) -> list[str]:
    """What the static report says against its own counts."""
    flags = [f"the tiers of the static report disagree: {line}" for line in report["agreement"]["differences"]]
    return flags + [
        f"{stage}: the static report leaves out {', '.join(operators)}, for which it has no formula"
        for stage, operators in report["unsupported_ops"].items()
    ]


def _flags(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What cannot be: nothing runs faster than its device can."""
    why = {
        "mfu": "the time, the workload or the peak is not that of this run",
        "mbu": "the peak bandwidth is not this device's, or fewer experts ran than were counted, or caches and fused "
        "kernels spared it the traffic",
        "roofline_fraction": "it ran faster than its bound: see its MFU and MBU",
    }
    return [
        f"{stage}: {name} is {row[name]:.3f}, above 1: {reason}"
        for stage, row in rows.items()
        for name, reason in why.items()
        if row[name] is not None and row[name] > 1
    ]


def engine_section(pairing: Pairing, metrics: Mapping[str, float]) -> dict[str, Any] | None:
    """Set a serving engine's own estimate of its work beside ours.

    Parameters
    ----------
    pairing : dict
        See `pair`.
    metrics : mapping
        Metrics of the profile. Those that matter begin with ``engine/``.

    Returns
    -------
    dict or None
        None where the profile is not of a serving engine, or a stage has no count. ``mfu`` is the work of all requests
        over the seconds that were looked at, whatever overlapped: the utilization of the machine. ``explanation``
        says what an estimate of the engine's own leaves out.
    """
    seconds, requests = metrics.get("engine/seconds"), metrics.get("engine/requests")
    flops = pairing["counts"]["flops"]
    if not seconds or not requests or any(stage.name not in flops for stage in FAMILY.stages):
        return None
    peak = pairing["peak"]["tflops"] * 1e12
    vision = requests * sum(flops[stage] for stage in AGGREGATES[VISION])
    ours = requests * sum(flops.values())
    section: dict[str, Any] = {
        "requests": requests,
        "seconds": seconds,
        "flops": ours,
        "vision_flops": vision,
        "mfu": ours / (seconds * peak),
    }
    estimate = metrics.get("engine/estimated_flops")
    if estimate:
        section |= {
            "engine_flops": estimate,
            "engine_mfu": estimate / (seconds * peak),
            "difference": estimate / ours - 1,
            "difference_language_only": estimate / (ours - vision) - 1,
            "explanation": _ENGINE_EXPLANATION,
        }
    return section


def peak_of_dict(values: Mapping[str, Any]) -> Peak:
    """Undo `peak_dict`."""
    gbps = values["gbps"]
    return Peak(
        name=values["name"],
        dtype=values["dtype"],
        flops_per_second=values["tflops"] * 1e12,
        bytes_per_second=None if gbps is None else gbps * 1e9,
        source=values["source"],
    )
