"""Rooflines: the bounds of a report as rows and lines, and the measured points of a pairing as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.escape import html_text, picture_text
from stagemeter.core.stage_names import stage_label
from stagemeter.core.units import milliseconds, rate, with_unit
from stagemeter.export.charts import COLOURS, new_figure, png

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


@dataclass(frozen=True)
class RooflinePoints:
    """The data of a roofline: FLOPs per byte and TFLOP/s of each stage, and the same of each corner of the roof."""

    stages: tuple[str, ...]
    intensity: tuple[float, ...]
    tflops: tuple[float, ...]
    ceiling: tuple[tuple[float, float], ...]
    title: str


def roofline_points(pairing: Mapping[str, Any]) -> RooflinePoints | None:
    """Return the data of a pairing's roofline; None without a bandwidth or a paired stage."""
    peak = pairing["peak"]
    rows = {stage: row for stage, row in pairing["stages"].items() if row["bytes"]}
    if peak["gbps"] is None or not rows:
        return None
    intensity = tuple(row["flops"] / row["bytes"] for row in rows.values())
    ridge = peak["tflops"] * 1e3 / peak["gbps"]
    left, right = min(*intensity, ridge) / _MARGIN, max(*intensity, ridge) * _MARGIN
    return RooflinePoints(
        stages=tuple(rows),
        intensity=intensity,
        tflops=tuple(row["tflops"] for row in rows.values()),
        ceiling=((left, left * peak["gbps"] / 1e3), (ridge, peak["tflops"]), (right, peak["tflops"])),
        title=f"{pairing['model']} on {peak['name']}, {peak['dtype']}: "
        f"{peak['tflops']:.4g} TFLOP/s, {peak['gbps']:.4g} GB/s",
    )


def roofline_picture(points: RooflinePoints) -> bytes:
    """Draw the roofline as a PNG picture."""
    figure, axes = new_figure(4.8)
    axes.loglog(*zip(*points.ceiling, strict=True), color="#444444", linewidth=1.5)
    for index, stage in enumerate(points.stages):
        colour = COLOURS[index % len(COLOURS)]
        axes.scatter(
            points.intensity[index], points.tflops[index], color=colour, s=45, zorder=3, label=picture_text(stage)
        )
    axes.set_xlabel("arithmetic intensity, FLOPs per byte moved")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(picture_text(points.title), loc="left", fontsize=10)
    axes.grid(True, which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return png(figure)


def roofline_page(points: RooflinePoints) -> str:
    """Draw the roofline as an interactive HTML page that needs no network."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[x for x, _ in points.ceiling],
        y=[y for _, y in points.ceiling],
        mode="lines",
        line={"color": "#444444"},
        name="ceiling",
    )
    for index, stage in enumerate(points.stages):
        figure.add_scatter(
            x=[points.intensity[index]],
            y=[points.tflops[index]],
            mode="markers",
            marker={"size": 11, "color": COLOURS[index % len(COLOURS)]},
            name=html_text(stage),
            hovertemplate="%{x:.4g} FLOPs per byte<br>%{y:.4g} TFLOP/s",
        )
    figure.update_layout(
        title=html_text(points.title),
        xaxis={"type": "log", "title": "arithmetic intensity, FLOPs per byte moved"},
        yaxis={"type": "log", "title": "TFLOP/s"},
        template="plotly_white",
    )
    return str(figure.to_html(include_plotlyjs=True, div_id="roofline"))
