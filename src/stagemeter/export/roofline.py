"""Rooflines: the bounds of a report as rows and lines, and the measured points of a pairing as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.stage_names import TOTAL, stage_label
from stagemeter.core.units import milliseconds, rate, with_unit
from stagemeter.export.charts import Chart, Series

_THROUGHPUT = {
    "decode_tokens_per_second": "decode tokens/s",
    "tokens_per_second": "tokens/s",
    "pages_per_hour": "pages/hour",
}


def bounds_table(roofline: Mapping[str, Any]) -> list[list[str]]:
    """Return the bounds of every stage as rows, the header first.

    The last column is there only where tokens choose among experts.
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
    """Return a few lines on a device's bounds."""
    lines = []
    rates = _rates(roofline["throughput"])
    if rates:
        lines.append(f"at most: {rates}")
        if roofline["throughput"] != roofline["throughput_every_expert"]:
            lines.append(f"if every expert is read: {_rates(roofline['throughput_every_expert'])}")
    return [*lines, memory_line(roofline["memory"])]


def _rates(throughput: Mapping[str, float | None]) -> str:
    given = ((throughput[name], what) for name, what in _THROUGHPUT.items())
    return ", ".join(f"{rate(value)} {what}" for value, what in given if value is not None)


def load_line(load: Mapping[str, Any], device: str) -> str:
    """Say what a rate of pages takes of a device."""
    total = load["stages"].get(TOTAL, {})
    rated = f"{rate(load['pages_per_hour'], 1)} {load['unit']}s/hour"
    if total.get("devices") is None:
        return f"{rated}: how many devices they take is not known, see memory and bounds"
    line = f"{rated} take at least {_busy(total['devices'])} of one {device}"
    if total["devices_every_expert"] != total["devices"]:
        line += f", {_busy(total['devices_every_expert'])} if every expert is read"
    if total["devices_at_mfu"] is not None:
        line += f"; {_busy(total['devices_at_mfu'])} at {_mfu_in_words(load)}"
    return line


def load_table(load: Mapping[str, Any]) -> list[list[str]]:
    """Return the devices that each stage keeps busy as rows, the header first."""
    stages, mfu = load["stages"], load["mfu"] is not None or load["mfu_source"] is not None
    columns = {"devices": "At least"}
    if any(row["devices"] != row["devices_every_expert"] for row in stages.values()):
        columns["devices_every_expert"] = "If every expert is read"
    if mfu:
        columns["devices_at_mfu"] = f"At {_mfu_in_words(load)}"
    rows = [["Devices", *columns.values()]]
    for name, row in stages.items():
        own = "" if row["mfu"] is None or load["mfu"] is not None else f" ({100 * row['mfu']:.3g} %)"
        cells = [_busy(row[column]) for column in columns]
        rows.append([name, *cells[:-1], f"{cells[-1]}{own}"])
    return rows


def _busy(devices: float | None) -> str:
    return "–" if devices is None else rate(devices, 3)


def _mfu_in_words(load: Mapping[str, Any]) -> str:
    return "the measured MFU" if load["mfu"] is None else f"MFU {load['mfu']:g}"


def load_lines(load: Mapping[str, Any]) -> list[str]:
    """Say how the devices of a rate are reckoned."""
    lines = []
    if load["mfu_source"] is not None:
        lines.append(f"MFU by stage: that of {load['mfu_source']}")
    if load["mfu"] is not None or load["mfu_source"] is not None:
        lines.append("a stage that cannot reach the MFU takes its bound")
    return lines


def memory_line(memory: Mapping[str, Any]) -> str:
    """Return a line on whether a workload fits into a device's memory."""
    sets = memory["working_set_bytes"].values()
    # Single operators are known from closed forms alone.
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


#: Factor by which the ceilings reach beyond the outermost points.
_MARGIN = 4.0


def roofline_chart(pairing: Mapping[str, Any]) -> Chart | None:
    """Return a pairing's roofline as a chart; None without a bandwidth or a paired stage.

    Points count the pairs that masks show, as the bounds do.
    """
    peak = pairing["peak"]
    stages = {stage: row for stage, row in pairing["stages"].items() if row["bytes"]}
    if peak["gbps"] is None or not stages:
        return None
    reached = {
        stage: (row["flops_causal"] / row["bytes"], row["mfu_causal"] * peak["tflops"]) for stage, row in stages.items()
    }
    intensities = [intensity for intensity, _ in reached.values()]
    ridge = peak["tflops"] * 1e3 / peak["gbps"]
    left, right = min(*intensities, ridge) / _MARGIN, max(*intensities, ridge) * _MARGIN

    def ceiling(intensity: float) -> float:
        return float(min(peak["tflops"], intensity * peak["gbps"] / 1e3))

    roof = Series("ceiling", [left, ridge, right], [ceiling(place) for place in (left, ridge, right)], joined=True)
    points = []
    for stage, (intensity, reach) in reached.items():
        share = f"{100 * reach / ceiling(intensity):.3g} %"
        said = f"{stage}: {intensity:.4g} FLOPs per byte, {reach:.4g} TFLOP/s, {share} of the ceiling"
        points.append(
            Series(stage, [intensity], [reach], [said], ceilings=[ceiling(intensity)], named=f"{stage}, {share}")
        )
    return Chart(
        title=f"{pairing['model']} on {peak['name']}, {peak['dtype']}: "
        f"{peak['tflops']:.4g} TFLOP/s, {peak['gbps']:.4g} GB/s",
        x_title="arithmetic intensity, FLOPs of visible pairs per byte moved",
        y_title="TFLOP/s of visible pairs",
        kind="points",
        series=[*points, roof],
        log=True,
        prefixes=False,
    )
