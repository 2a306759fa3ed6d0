"""What a device could do with a report's workload at best, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.export.units import milliseconds, rate, with_unit


def roofline_lines(report: Mapping[str, Any]) -> list[str]:
    """Say in a few lines what a device's bounds come to; none where no device was asked about."""
    roofline = report["roofline"]
    if roofline is None:
        return []
    bounds, throughput = roofline["bounds"], roofline["throughput"]
    stages = ", ".join(
        f"{'a decode step' if name == 'decode' else name} {milliseconds(row['roofline_ms'])} ({row['bound_by']})"
        for name, row in bounds.items()
        if name not in ("vision", "forward", "decode_total") and row["roofline_ms"] is not None
    )
    lines = [f"{peak_title(roofline['peak'])}; at least: {stages}"] if stages else [peak_title(roofline["peak"])]
    rates = [
        f"{rate(value)} {what}"
        for what, value in (
            ("decode tokens/s", throughput["decode_tokens_per_second"]),
            ("tokens/s", throughput["tokens_per_second"]),
            ("pages/hour", throughput["pages_per_hour"]),
        )
        if value is not None
    ]
    if rates:
        lines.append(f"at most: {', '.join(rates)}")
    return [*lines, memory_line(roofline["memory"])]


def peak_title(peak: Mapping[str, Any]) -> str:
    """Name a device with its peaks."""
    bandwidth = "bandwidth not known" if peak["gbps"] is None else f"{peak['gbps']:,.5g} GB/s"
    return f"{peak['name']} ({peak['dtype']}: {peak['tflops']:,.5g} TFLOP/s, {bandwidth})"


def memory_line(memory: Mapping[str, Any]) -> str:
    """Say whether a workload fits into a device's memory."""
    working = max(memory["working_set_bytes"].values())
    needs = (
        f"memory: weights {with_unit(memory['weights_bytes'], 'B')}, KV cache "
        f"{with_unit(memory['kv_cache_bytes'], 'B')}, largest operator {with_unit(working, 'B')}; at least "
        f"{with_unit(memory['needed_bytes'], 'B')} in {memory['needed_in']}"
    )
    if memory["device_bytes"] is None:
        return needs
    of_device = f"of the device's {with_unit(memory['device_bytes'], 'B')}"
    if not memory["fits"]:
        return f"{needs} {of_device}: does not fit; largest batch {memory['largest_batch_size']:,}"
    return f"{needs} {of_device}: may fit, up to batch {memory['largest_batch_size']:,}"
