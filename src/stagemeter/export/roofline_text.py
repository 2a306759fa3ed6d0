"""What a device could do with a report's workload at best, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.stage_names import stage_label
from stagemeter.core.units import milliseconds, rate, with_unit

_RATES = {
    "decode_tokens_per_second": "decode tokens/s",
    "tokens_per_second": "tokens/s",
    "pages_per_hour": "pages/hour",
}


def bounds_table(roofline: Mapping[str, Any]) -> list[list[str]]:
    """Return the bounds of every stage as rows, the header first.

    The last column is there only where it says something else than the bound: where tokens choose among experts.
    """
    header = ["Stage", "Arithmetic", "Memory", "At least", "Bound by"]
    bounds = roofline["bounds"]
    depends = any(row["roofline_ms"] != row["roofline_ms_every_expert"] for row in bounds.values())
    if depends:
        header.append("If every expert is read")
    rows = [header]
    for name, row in bounds.items():
        cells = [milliseconds(row["compute_ms"]), milliseconds(row["memory_ms"]), milliseconds(row["roofline_ms"])]
        cells.append(row["bound_by"] if row["roofline_ms"] is not None else "–")
        if depends:
            cells.append(milliseconds(row["roofline_ms_every_expert"]))
        rows.append([stage_label(name), *cells])
    return rows


def roofline_lines(roofline: Mapping[str, Any]) -> list[str]:
    """Say in a few lines what a device's bounds come to."""
    lines = []
    rates = _rates(roofline["throughput"])
    if rates:
        lines.append(f"at most: {rates}")
        if roofline["throughput"] != roofline["throughput_every_expert"]:
            lines.append(f"if every expert is read: {_rates(roofline['throughput_every_expert'])}")
    return [*lines, memory_line(roofline["memory"])]


def _rates(throughput: Mapping[str, float | None]) -> str:
    given = ((throughput[name], what) for name, what in _RATES.items())
    return ", ".join(f"{rate(value)} {what}" for value, what in given if value is not None)


def peak_title(peak: Mapping[str, Any]) -> str:
    """Name a device with its peaks."""
    bandwidth = "bandwidth not known" if peak["gbps"] is None else f"{peak['gbps']:,.5g} GB/s"
    return f"{peak['name']} ({peak['dtype']}: {peak['tflops']:,.5g} TFLOP/s, {bandwidth})"


def memory_line(memory: Mapping[str, Any]) -> str:
    """Say whether a workload fits into a device's memory."""
    sets = memory["working_set_bytes"].values()
    # Without closed forms nothing is known of single operators.
    largest = f", largest operator {with_unit(max(sets), 'B')}" if sets else ""
    needs = (
        f"memory: weights {with_unit(memory['weights_bytes'], 'B')}, KV cache "
        f"{with_unit(memory['kv_cache_bytes'], 'B')}{largest}; at least "
        f"{with_unit(memory['needed_bytes'], 'B')} in {memory['needed_in']}"
    )
    if memory["fits"] is None:
        return needs
    of_device = f"of the device's {with_unit(memory['device_bytes'], 'B')}"
    if not memory["fits"]:
        largest = memory["largest_batch_size"]
        return f"{needs} {of_device}: does not fit, so there is no throughput; largest batch {largest:,}"
    return f"{needs} {of_device}: may fit, up to batch {memory['largest_batch_size']:,}"
