"""A comparison as one page that needs no network: a bar for each subject, differences, tables that can be sorted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.comparing.compare import SUMS
from stagemeter.core.escape import html_text, printable
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, REQUEST
from stagemeter.export.compare_text import comparison_table, legend, setting_rows, shown, signed, title_of

_COLOURS = ("#4878a8", "#d1695b", "#66a182", "#d99a3d", "#8a6fb0", "#9a8067", "#c977a4")
#: Of subjects, so that they are not taken for stages.
_SUBJECT_COLOURS = ("#7d8590", "#3aa0a0", "#b5577d", "#7a9a01", "#5b6abf", "#c2752b")
_BAR_HEIGHT, _CHART_MARGIN = 34, 120


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as HTML.

    Parameters
    ----------
    comparison : mapping
        See `stagemeter.comparing.compare.compare`.

    Returns
    -------
    str
        A page with everything in it, plotly's script of five megabytes included. It follows the reader's choice of
        light or dark.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("stagemeter.export"),
        autoescape=True,
        undefined=StrictUndefined,
        # Text alone: a chart is a page's part already.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    quantities = [
        {
            "title": title_of(comparison, name),
            "bars": _bars(comparison, name, quantity, f"bars-{name}"),
            "differences": _differences(comparison, name, quantity, f"differences-{name}"),
            **_table(comparison, name, quantity),
        }
        for name, quantity in comparison["quantities"].items()
    ]
    return environment.get_template("comparison.html.jinja").render(
        names=[subject["name"] for subject in comparison["subjects"]],
        legend=legend(comparison),
        quantities=quantities,
        settings=[(title, setting_rows(comparison, title.lower())) for title in ("Configuration", "Environment")],
        notes=comparison["notes"],
        plotly=get_plotlyjs(),
    )


def _table(comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any]) -> dict[str, Any]:
    header, rows = comparison_table(comparison, name, quantity)
    cells = [[{"text": cell.text, "value": "" if cell.value is None else cell.value} for cell in row] for row in rows]
    return {"header": header, "rows": cells}


def _bars(comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any], div_id: str) -> str:
    """A bar for each subject, made of its stages; MFU, which does not add up, side by side."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    labels = [html_text(subject["name"]) for subject in comparison["subjects"]]
    for index, row in enumerate(parts(quantity)):
        figure.add_bar(
            y=labels,
            x=[value or 0 for value in row["values"]],
            name=html_text(row["stage"]),
            orientation="h",
            marker={"color": _COLOURS[index % len(_COLOURS)]},
            customdata=[shown(name, value) for value in row["values"]],
            hovertemplate="%{customdata}",
        )
    figure.update_layout(barmode="group" if name == "mfu" else "stack", yaxis={"autorange": "reversed"})
    return _html(figure, len(labels), div_id, name)


def _differences(comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any], div_id: str) -> str:
    """What each stage adds or takes away against the baseline."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    rows = parts(quantity)
    for number, subject in enumerate(comparison["subjects"]):
        if number == comparison["baseline"]:
            continue
        differences = [row["differences"][number] for row in rows]
        figure.add_bar(
            y=[html_text(row["stage"]) for row in rows],
            x=[difference or 0 for difference in differences],
            name=html_text(subject["name"]),
            orientation="h",
            marker={"color": _SUBJECT_COLOURS[number % len(_SUBJECT_COLOURS)]},
            customdata=[signed(name, difference) for difference in differences],
            hovertemplate="%{customdata}",
        )
    figure.update_layout(barmode="group", yaxis={"autorange": "reversed"}, showlegend=True)
    return _html(figure, len(rows), div_id, f"{name}, difference")


def parts(quantity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows that a request is made of, in its order: no sums, and of decode all steps where there are both."""
    rows = {row["stage"]: row for row in quantity["rows"]}
    left_out = {*SUMS, "active", REQUEST, *([DECODE] if DECODE_TOTAL in rows else [])}
    return [rows[stage] for stage in quantity["stages"] if stage not in left_out]


def _html(figure: Any, bars: int, div_id: str, title: str) -> str:
    figure.update_layout(
        height=_CHART_MARGIN + _BAR_HEIGHT * max(bars, 2),
        margin={"l": 10, "r": 10, "t": 40, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": title, "exponentformat": "SI"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    )
    figure.update_yaxes(automargin=True)
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=div_id))
