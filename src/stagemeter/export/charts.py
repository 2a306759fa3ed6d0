"""Charts, drawn as a picture and as an interactive page that needs no network."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stagemeter.core.escape import html_text, picture_text
from stagemeter.core.units import percentage, with_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4878a8", "#d1695b", "#66a182", "#d99a3d", "#8a6fb0", "#9a8067", "#c977a4")
#: How a chart is laid out, and the dots per inch of its picture.
LAYOUT, DPI = "constrained", 120


@dataclass(frozen=True)
class Series:
    """A series of points, joined by a line or not. For bars, x are names. Labels are one per point, or empty."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    labels: Sequence[str] = ()
    joined: bool = False


@dataclass(frozen=True)
class Chart:
    """The data of a chart. `log` makes both axes of lines or points logarithmic, `prefixes` writes SI prefixes on them.

    A heat map has a row for each of `y_values`, and a column for each of `x_values`.
    """

    title: str
    x_title: str
    y_title: str
    kind: Literal["lines", "points", "bars", "heat"]
    series: Sequence[Series] = ()
    heat: Sequence[Sequence[float]] = ()
    x_values: Sequence[Any] = ()
    y_values: Sequence[Any] = ()
    log: bool = False
    prefixes: bool = True


def _new_figure(height: float) -> tuple[Figure, Any]:
    """Return an empty figure of matplotlib, and its axes."""
    from stagemeter.export.figure import NotebookFigure

    figure = NotebookFigure(figsize=(8, height), layout=LAYOUT)
    return figure, figure.add_subplot()


def _finish(axes: Any, title: str) -> None:
    axes.set_title(picture_text(title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def picture(figure: Figure) -> bytes:
    """Return a figure as a PNG picture."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


def chart_picture(chart: Chart) -> bytes:
    """Draw a chart as a PNG picture."""
    return picture(chart_figure(chart))


def chart_figure(chart: Chart) -> Figure:
    """Draw a chart with matplotlib."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure, axes = _new_figure(4.8)
    if chart.kind == "heat":
        mesh = axes.pcolormesh(range(len(chart.x_values)), range(len(chart.y_values)), chart.heat, cmap="viridis")
        figure.colorbar(mesh, format=EngFormatter())
        for axis, values in ((axes.xaxis, chart.x_values), (axes.yaxis, chart.y_values)):
            places = sorted({round(part * (len(values) - 1) / 7) for part in range(8)})
            axis.set_ticks(places, [f"{values[place]:,}" for place in places])
    else:
        for number, series in enumerate(chart.series):
            colour, name = COLOURS[number % len(COLOURS)], picture_text(series.name)
            # A picture needs no more digits than a float has, and draws no integers of more than 64 bits.
            heights = [float(value) for value in series.y]
            if chart.kind == "bars":
                width = 0.8 / len(chart.series)
                left = [place + (number + 0.5) * width - 0.4 for place in range(len(series.x))]
                axes.bar(left, heights, width, color=colour, label=name)
                axes.set_xticks(range(len(series.x)), [picture_text(str(value)) for value in series.x])
            elif chart.kind == "lines":
                axes.plot(series.x, heights, color=colour, label=name, marker="o", markersize=3)
            elif series.joined:
                axes.plot(series.x, heights, color="#555555", label=name, linewidth=1, zorder=1)
            else:
                axes.scatter(series.x, heights, color=colour, s=26, label=name, zorder=2)
        axes.legend(frameon=False)
        axes.grid(True, alpha=0.2)
        if chart.log:
            axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis) if chart.prefixes else ():
            if chart.log:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_minor_formatter(NullFormatter())
            if chart.kind != "bars" or axis is axes.yaxis:
                axis.set_major_formatter(EngFormatter())
    axes.set(xlabel=chart.x_title, ylabel=chart.y_title)
    _finish(axes, chart.title)
    return figure


def charts_page(charts: Mapping[str, Chart], title: str) -> str:
    """Draw charts on one HTML page, which holds plotly's script of five megabytes once."""
    from plotly.offline import get_plotlyjs

    bodies = "\n".join(
        f"<h2>{html_text(chart.title)}</h2>\n"
        + str(_interactive(chart).to_html(full_html=False, include_plotlyjs=False, div_id=name))
        for name, chart in charts.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html_text(title)}</title>'
        "<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem }"
        "</style></head>\n"
        f"<body><h1>{html_text(title)}</h1>\n<script>{get_plotlyjs()}</script>\n{bodies}\n</body></html>\n"
    )


def _texts(values: Sequence[Any]) -> list[Any]:
    return [html_text(value) if isinstance(value, str) else value for value in values]


def _interactive(chart: Chart) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    if chart.kind == "heat":
        figure.add_heatmap(
            x=[html_text(str(value)) for value in chart.x_values],
            y=[html_text(str(value)) for value in chart.y_values],
            z=chart.heat,
            colorscale="Viridis",
        )
    for number, series in enumerate(chart.series):
        colour = COLOURS[number % len(COLOURS)]
        if chart.kind == "bars":
            figure.add_bar(x=_texts(series.x), y=list(series.y), name=html_text(series.name), marker={"color": colour})
        else:
            figure.add_scatter(
                x=list(series.x),
                y=list(series.y),
                name=html_text(series.name),
                mode="lines" if series.joined else "lines+markers" if chart.kind == "lines" else "markers",
                marker={"color": "#555555" if series.joined else colour},
                text=[html_text(label) for label in series.labels] or None,
            )
    scale = {"type": "log"} if chart.log else {}
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": chart.x_title, **scale},
        yaxis={"title": chart.y_title, "exponentformat": "SI" if chart.prefixes else "B", **scale},
    )
    return figure


_COLOUR = "#2f6f9f"


def bar_figure(flops: Mapping[str, int], total: int, what: str, title: str) -> Figure:
    """Draw FLOPs by the name of their bar, with their shares of a total. `what` is the axis title."""
    from matplotlib.ticker import FuncFormatter

    figure, axes = _new_figure(3.6)
    # A picture needs no more digits than a float has, and draws no integers of more than 64 bits.
    lengths = [float(value) for value in flops.values()]
    bars = axes.barh([picture_text(name) for name in flops], lengths, color=_COLOUR)
    shares = [f" {with_unit(value)} ({percentage(value, total)})" for value in flops.values()]
    axes.bar_label(bars, labels=shares, padding=2)
    axes.invert_yaxis()
    axes.set(xlim=(0, max(lengths, default=0) * 1.22 or 1), xlabel=what)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: with_unit(round(value))))
    _finish(axes, title)
    return figure
