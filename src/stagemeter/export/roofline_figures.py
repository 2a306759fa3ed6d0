"""The measured points of a pairing below their device's ceilings: as a picture, and as an interactive page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.escape import html_text, picture_text

_COLOURS = ("#2f6f9f", "#d1495b", "#66a182", "#edae49", "#6b4e9b", "#3d3d3d", "#8c8c8c")
#: How far the ceilings reach beyond the outermost points, as a factor.
_MARGIN = 4.0


@dataclass(frozen=True)
class Points:
    """What both drawings show.

    Attributes
    ----------
    stages : tuple of str
        Names of the points.
    intensity, tflops : tuple of float
        FLOPs per byte, and TFLOP/s that were reached, of each.
    ceiling : tuple of tuple of float
        Corners of the roof: FLOPs per byte and TFLOP/s.
    title : str
        Device, data type and model.
    """

    stages: tuple[str, ...]
    intensity: tuple[float, ...]
    tflops: tuple[float, ...]
    ceiling: tuple[tuple[float, float], ...]
    title: str


def roofline_points(pairing: Mapping[str, Any]) -> Points | None:
    """Work out what to draw; None where the bandwidth is not known or no stage was paired."""
    peak = pairing["peak"]
    rows = {stage: row for stage, row in pairing["stages"].items() if row["bytes"]}
    if peak["gbps"] is None or not rows:
        return None
    intensity = tuple(row["flops"] / row["bytes"] for row in rows.values())
    ridge = peak["tflops"] * 1e3 / peak["gbps"]
    left, right = min(*intensity, ridge) / _MARGIN, max(*intensity, ridge) * _MARGIN
    return Points(
        stages=tuple(rows),
        intensity=intensity,
        tflops=tuple(row["tflops"] for row in rows.values()),
        ceiling=((left, left * peak["gbps"] / 1e3), (ridge, peak["tflops"]), (right, peak["tflops"])),
        title=f"{pairing['model']} on {peak['name']}, {peak['dtype']}: "
        f"{peak['tflops']:.4g} TFLOP/s, {peak['gbps']:.4g} GB/s",
    )


def roofline_picture(points: Points) -> bytes:
    """Draw the roofline as a PNG picture."""
    # Without pyplot: no window system is looked for, and no global state is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.loglog(*zip(*points.ceiling, strict=True), color="#444444", linewidth=1.5)
    for index, stage in enumerate(points.stages):
        colour = _COLOURS[index % len(_COLOURS)]
        axes.scatter(
            points.intensity[index], points.tflops[index], color=colour, s=45, zorder=3, label=picture_text(stage)
        )
    axes.set_xlabel("arithmetic intensity, FLOPs per byte moved")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(picture_text(points.title), loc="left", fontsize=10)
    axes.grid(True, which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def roofline_page(points: Points) -> str:
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
            marker={"size": 11, "color": _COLOURS[index % len(_COLOURS)]},
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
