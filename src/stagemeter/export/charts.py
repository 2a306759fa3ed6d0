"""Charts, drawn once: as a picture, and on a page as SVG that needs neither a script nor a network.

MLflow shows a page of a run's files in a sandboxed frame. A script that draws would be megabytes on each page. SVG
shows the same everywhere, and the browser shows the labels of its points.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal
from warnings import catch_warnings, filterwarnings
from xml.etree import ElementTree

from stagemeter.core.escape import html_text, picture_text, printable
from stagemeter.core.units import percentage, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

#: Colours that people tell apart whatever colours they see. Source: Okabe and Ito, "Color Universal Design", 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
#: Beside colours, since prints may have none.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: How a chart is laid out, and the dots per inch of its picture.
LAYOUT, DPI = "constrained", 120
_LINE, _BROKEN = "#555555", (0, (2, 2))
_DISTANCE = "distance to the ceiling,\n% of it reached"
#: More points than this are drawn as a bitmap, without labels.
_MOST_POINTS = 2000
#: Characters of a line of the title, and of a name in a legend or on an axis.
_TITLE_WIDTH, _LONGEST_NAME = 90, 36
#: Up to this ratio of its ends, an axis has few decades.
_FEW_DECADES = 100
_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Series:
    """A series of points, joined by a line or not. For bars, x are names. Labels are one per point, or empty.

    A ceiling for each point, if given, is joined to it by a broken line. `named` is written beside the first point.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    labels: Sequence[str] = ()
    joined: bool = False
    ceilings: Sequence[float] = ()
    named: str = ""


@dataclass(frozen=True)
class Chart:
    """The data of a chart. `log` makes both axes of lines or points logarithmic, `prefixes` writes SI prefixes on them.

    Bars stand upright, side by side, or lie, `stacked` ones end to end. A heat map has a row for each of `y_values`, a
    column for each of `x_values`, and `z_title` says what its colours are.
    """

    title: str
    x_title: str
    y_title: str
    kind: Literal["lines", "points", "bars", "lying bars", "heat"]
    series: Sequence[Series] = ()
    heat: Sequence[Sequence[float]] = ()
    x_values: Sequence[Any] = ()
    y_values: Sequence[Any] = ()
    z_title: str = ""
    log: bool = False
    prefixes: bool = True
    stacked: bool = False
    colours: Sequence[str] = field(default=COLOURS)


def picture(figure: Figure) -> bytes:
    """Return a figure as a PNG picture."""
    return _written(figure, "png", dpi=DPI)


def chart_picture(chart: Chart) -> bytes:
    """Draw a chart as a PNG picture."""
    return picture(chart_figure(chart))


def chart_figure(chart: Chart) -> Figure:
    """Draw a chart with matplotlib."""
    return _drawn(chart)[0]


def chart_svg(chart: Chart, name: str) -> str:
    """Draw a chart as SVG for a page, on which the name is its own. Its colours of text and lines are the page's."""
    from matplotlib import rc_context

    # Text stays text, which a reader can find, in the reader's fonts; equal charts are equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing")
        figure, labels = _drawn(chart, titled=False)
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        text = _written(figure, "svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(text.decode())
    for group in root.iter(f"{{{_SVG}}}g"):
        said = labels.get(group.get("id", ""), ())
        # Points use a marker each, and a bar is a path.
        marks = list(group.iter(f"{{{_SVG}}}use")) or list(group.iter(f"{{{_SVG}}}path"))
        for mark, label in zip(marks, said, strict=bool(said)):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = printable(label)
    # The size is that of the page.
    for attribute in ("width", "height"):
        del root.attrib[attribute]
    root.set("role", "img")
    root.set("aria-label", picture_text(chart.title))
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ElementTree.tostring(root, encoding="unicode")


#: Colours of a page, light or dark as the reader has it, also for the lines and text of charts.
PAGE_STYLE = """
  :root {
    color-scheme: light dark;
    --text: #1f2328; --faint: #59636e; --line: #d1d9e0; --ground: #ffffff; --head: #f3f5f7;
  }
  @media (prefers-color-scheme: dark) {
    :root { --text: #e6edf3; --faint: #9198a1; --line: #3d444d; --ground: #0d1117; --head: #161b22; }
  }
  body {
    font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground);
    margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
  svg { display: block; width: 100%; height: auto; max-width: 60rem; }
  svg text { fill: var(--text) !important; font-family: system-ui, sans-serif !important; }
  svg [style*="stroke: #000000"], svg [style*="stroke: #555555"] { stroke: var(--faint) !important; }
  svg [style*="stroke: #b0b0b0"] { stroke: var(--line) !important; }
"""


def charts_page(charts: Mapping[str, Chart], title: str) -> str:
    """Draw charts on one HTML page. Each point says its label where the pointer rests."""
    bodies = "\n".join(f"<h2>{html_text(chart.title)}</h2>\n{chart_svg(chart, name)}" for name, chart in charts.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html_text(title)}</title><style>{PAGE_STYLE}</style></head>\n"
        f"<body><h1>{html_text(title)}</h1>\n{bodies}\n</body></html>\n"
    )


def bar_figure(flops: Mapping[str, int], total: int, what: str, title: str) -> Figure:
    """Draw FLOPs by the name of their bar, with their shares of a total. `what` is the axis title."""
    shares = [f"{with_unit(value)} ({percentage(value, total)})" for value in flops.values()]
    series = [Series("", list(flops), list(flops.values()), shares)]
    return chart_figure(Chart(title, what, "", "lying bars", series))


#: Labels of marks on a drawing, by the id of their group.
_Labels = dict[str, Sequence[str]]


def _drawn(chart: Chart, titled: bool = True) -> tuple[Figure, _Labels]:
    """Return a chart as a figure of matplotlib, with the labels of its marks."""
    from stagemeter.export.figure import NotebookFigure

    rows = max((len(series.x) for series in chart.series), default=1) if chart.kind == "lying bars" else 0
    figure = NotebookFigure(figsize=(8, max(3.6, 1.2 + 0.34 * rows) if rows else 4.8), layout=LAYOUT)
    axes = figure.add_subplot()
    draw = {"heat": _draw_heat, "bars": _draw_bars, "lying bars": _draw_lying_bars}.get(chart.kind, _draw_points)
    labels = draw(axes, chart)
    axes.set(xlabel=picture_text(chart.x_title), ylabel=picture_text(chart.y_title))
    axes.spines[["top", "right"]].set_visible(False)
    if titled:
        axes.set_title(fill(picture_text(chart.title), _TITLE_WIDTH), loc="left", fontsize=10)
    if any(series.ceilings for series in chart.series):
        axes.plot([], [], color=_LINE, linestyle=_BROKEN, linewidth=1.2, label=_DISTANCE)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    if any(series.named for series in chart.series):
        _write_names(figure, axes, chart)
    return figure, labels


def _written(figure: Figure, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options)
    return stream.getvalue()


def _shown(name: str) -> str:
    """Return a name for a legend or an axis, which has little room."""
    return picture_text(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")


def _draw_heat(axes: Axes, chart: Chart) -> _Labels:
    from matplotlib.ticker import EngFormatter

    mesh = axes.pcolormesh(range(len(chart.x_values)), range(len(chart.y_values)), chart.heat, cmap="viridis")
    # As a bitmap, a large map is as small as any.
    mesh.set_rasterized(True)
    axes.figure.colorbar(mesh, format=EngFormatter(), label=picture_text(chart.z_title))
    for axis, values in ((axes.xaxis, chart.x_values), (axes.yaxis, chart.y_values)):
        places = sorted({round(part * (len(values) - 1) / 7) for part in range(8)})
        axis.set_ticks(places, [f"{values[place]:,}" for place in places])
    return {}


def _draw_bars(axes: Axes, chart: Chart) -> _Labels:
    from matplotlib.ticker import EngFormatter

    labels: _Labels = {}
    width = 0.8 / max(1, len(chart.series))
    for number, series in enumerate(chart.series):
        left = [place + (number + 0.5) * width - 0.4 for place in range(len(series.x))]
        colour = chart.colours[number % len(chart.colours)]
        bars = axes.bar(left, _floats(series.y), width * 0.95, color=colour, label=_shown(series.name))
        labels |= _labelled(bars, number, series)
    names = chart.series[0].x if chart.series else ()
    axes.set_xticks(range(len(names)), [_shown(str(name)) for name in names])
    axes.grid(True, axis="y", alpha=0.4)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(EngFormatter())
    return labels


def _draw_lying_bars(axes: Axes, chart: Chart) -> _Labels:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    labels: _Labels = {}
    count = max(1, len(chart.series))
    names = chart.series[0].x if chart.series else ()
    ends = [0.0] * len(names)
    height = 0.7 if chart.stacked else 0.8 / count
    for number, series in enumerate(chart.series):
        lengths, colour = _floats(series.y), chart.colours[number % len(chart.colours)]
        shift = 0.0 if chart.stacked else (number + 0.5) * height - 0.4
        places = [place + shift for place in range(len(names))]
        start = list(ends) if chart.stacked else 0.0
        bars = axes.barh(places, lengths, height * 0.95, left=start, color=colour, label=_shown(series.name))
        labels |= _labelled(bars, number, series)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
        if count == 1 and series.labels:
            axes.bar_label(bars, labels=[picture_text(label) for label in series.labels], padding=4, fontsize=9)
            # Room for the words at the ends of the bars.
            axes.margins(x=0.3)
    axes.set_yticks(range(len(names)), [_shown(str(name)) for name in names])
    axes.invert_yaxis()
    axes.grid(True, axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    if not any(ends):
        axes.set_xlim(0, 1)
    return labels


def _tick(value: float) -> str:
    from matplotlib.ticker import EngFormatter

    # Shares are no thousandths.
    return f"{value:.4g}" if abs(value) < 1000 else EngFormatter()(value)


def _labelled(bars: Iterable[Any], number: int, series: Series) -> _Labels:
    """Give bars ids, and return their labels by id."""
    labels = series.labels or [f"{value:,.6g}" for value in series.y]
    found: _Labels = {}
    for place, (bar, name, label) in enumerate(zip(bars, series.x, labels, strict=True)):
        bar.set_gid(f"bar-{number}-{place}")
        found[f"bar-{number}-{place}"] = [f"{name}, {series.name}: {label}" if series.name else f"{name}: {label}"]
    return found


def _draw_points(axes: Axes, chart: Chart) -> _Labels:
    """Draw lines or points, and the broken lines to their ceilings."""
    labels: _Labels = {}
    number = 0
    for series in chart.series:
        heights = _floats(series.y)
        if series.joined:
            # Behind lines, a line would not be seen.
            band: dict[str, Any] = {"linewidth": 9, "alpha": 0.25} if chart.kind == "lines" else {"linewidth": 1.2}
            axes.plot(series.x, heights, color=_LINE, label=_shown(series.name), zorder=1, **band)
            continue
        colour, marker = chart.colours[number % len(chart.colours)], _MARKERS[number % len(_MARKERS)]
        (points,) = axes.plot(
            series.x,
            heights,
            color=colour,
            # A name beside the point needs no legend.
            label="" if series.named else _shown(series.name),
            marker=marker,
            markersize=5 if chart.kind == "lines" else 7,
            linestyle="-" if chart.kind == "lines" else "none",
        )
        for place, height, ceiling in zip(series.x, heights, series.ceilings, strict=bool(series.ceilings)):
            axes.plot([place, place], [height, ceiling], color=colour, linestyle=_BROKEN, linewidth=1.2, zorder=1)
        if len(heights) > _MOST_POINTS:
            points.set_rasterized(True)
        elif series.labels:
            points.set_gid(f"points-{number}")
            labels[f"points-{number}"] = series.labels
        number += 1
    if chart.log:
        axes.set(xscale="log", yscale="log")
    axes.grid(True, alpha=0.4)
    for axis in (axes.xaxis, axes.yaxis):
        _set_ticks(axis, chart)
    return labels


def _set_ticks(axis: Any, chart: Chart) -> None:
    """Write decades on a logarithmic axis, and 2 and 5 between where there are few."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    if chart.log:
        least, most = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if most / least < _FEW_DECADES else (1,), numticks=50))
        axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=200))
        axis.set_minor_formatter(NullFormatter())
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    axis.set_major_formatter(EngFormatter() if chart.prefixes else plain)


#: Shift of names that are right beside their points.
_BESIDE = 8
#: Places of a name beside its point: shift in points, and how the text is aligned.
_PLACES = [
    (
        shift * across,
        shift * up,
        {-1: "right", 0: "center", 1: "left"}[across],
        {-1: "top", 0: "center", 1: "bottom"}[up],
    )
    for shift in (_BESIDE, 18, 32, 48, 70, 100)
    for across, up in ((1, 0), (1, -1), (-1, 0), (-1, -1), (0, -1), (1, 1), (-1, 1), (0, 1))
]


def _write_names(figure: Figure, axes: Axes, chart: Chart) -> None:
    """Write names beside points, each at the first place where it covers no point, line or name, or else the fewest."""
    from matplotlib.transforms import Bbox

    # Places are known once the figure is laid out.
    figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in _covered(to_pixels, chart.series)]
    for number, one in enumerate(one for one in chart.series if not one.joined):
        write = partial(
            axes.annotate,
            _shown(one.named),
            (one.x[0], float(one.y[0])),
            textcoords="offset points",
            fontsize=9,
        )
        boxes = {}
        for place in _PLACES:
            text = write(xytext=place[:2], ha=place[2], va=place[3])
            boxes[place] = text.get_window_extent()
            text.remove()
        place = min(boxes, key=lambda place: _covers(boxes[place], axes.bbox, taken))
        # A line leads from a name that is not right beside its point.
        beside = 0 in place[:2] and max(map(abs, place[:2])) == _BESIDE
        leader = None if beside else {"arrowstyle": "-", "lw": 0.8, "color": chart.colours[number % len(chart.colours)]}
        write(xytext=place[:2], ha=place[2], va=place[3], arrowprops=leader)
        taken.append(boxes[place])


def _covers(box: Bbox, frame: Bbox, taken: Sequence[Bbox]) -> tuple[bool, int]:
    """Return whether a box leaves the frame, and how many others it covers."""
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return not inside, sum(bool(box.overlaps(other)) for other in taken)


def _covered(to_pixels: Any, series: Sequence[Series]) -> Iterator[tuple[float, float]]:
    """Yield places along what is drawn: points, the lines that join them, and those to their ceilings."""
    for one in series:
        ends = list(zip(one.x, _floats(one.y), strict=True))
        lines = (
            [[ends[at], ends[at + 1]] for at in range(len(ends) - 1)] if one.joined else [[end, end] for end in ends]
        )
        lines += [[(x, y), (x, ceiling)] for (x, y), ceiling in zip(ends, one.ceilings, strict=bool(one.ceilings))]
        for line in lines:
            # Lines are straight on the drawing, whatever the scales.
            (left, low), (right, high) = to_pixels(line)
            steps = max(1, int(math.hypot(right - left, high - low) / 6))
            for step in range(steps + 1):
                yield left + (right - left) * step / steps, low + (high - low) * step / steps


def _floats(values: Iterable[float]) -> list[float]:
    """Return numbers as a drawing takes them: it needs no more digits, and takes no integer of more than 64 bits."""
    return [float(value) for value in values]
