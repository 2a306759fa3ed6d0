"""The report as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

# Without pyplot: no window system is looked for, and no global state is left behind.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from stagemeter.core.escape import picture_text
from stagemeter.core.report import request_total
from stagemeter.core.units import describe_views, percentage, with_unit

_COLOUR = "#2f6f9f"


def flops_chart(report: Mapping[str, Any]) -> bytes:
    """Draw a bar chart of the FLOPs of each stage over the whole request.

    Parameters
    ----------
    report : mapping
        A report.

    Returns
    -------
    bytes
        A PNG picture.
    """
    steps, workload = report["stages"]["decode"]["steps"], report["metadata"]["workload"]
    flops = {
        f"decode x {steps:,}" if name == "decode" else name: value
        for name, value in request_total(report, "flops").items()
    }
    views = f"{describe_views(workload)}, " if workload["global_views"] else ""
    title = f"{report['metadata']['model']}, {workload['mode']}: {views}{workload['prompt_tokens']:,} prompt tokens"
    return bar_chart(flops, report["total"]["flops"], "FLOPs of one request", title)


def bar_chart(flops: Mapping[str, int], total: int, what: str, title: str) -> bytes:
    """Draw FLOPs as bars with their shares of a total.

    Parameters
    ----------
    flops : mapping
        FLOPs by the name of their bar.
    total : int
        What the shares are of.
    what, title : str
        What the bars show, and what it is of.

    Returns
    -------
    bytes
        A PNG picture.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # A picture needs no more digits than a float has, and draws no integers of more than 64 bits.
    lengths = [float(value) for value in flops.values()]
    bars = axes.barh([picture_text(name) for name in flops], lengths, color=_COLOUR)
    shares = [f" {with_unit(value)} ({percentage(value, total)})" for value in flops.values()]
    axes.bar_label(bars, labels=shares, padding=2)
    axes.invert_yaxis()
    axes.set_xlim(0, max(lengths) * 1.22 or 1)
    axes.set_xlabel(what)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: with_unit(round(value))))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(picture_text(title), loc="left", fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
