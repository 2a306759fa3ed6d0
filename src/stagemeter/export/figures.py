"""The report as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

# Without pyplot: no window system is looked for, and no global state is left behind.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from stagemeter.export.units import describe_views, percentage, with_unit
from stagemeter.report import request_total

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
    flops = request_total(report, "flops")
    steps = report["stages"]["decode"]["steps"]
    labels = [f"decode x {steps:,}" if name == "decode" else name for name in flops]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = axes.barh(labels, list(flops.values()), color=_COLOUR)
    shares = [f" {with_unit(value)} ({percentage(value, report['total']['flops'])})" for value in flops.values()]
    axes.bar_label(bars, labels=shares, padding=2)
    axes.invert_yaxis()
    axes.set_xlim(0, max(flops.values()) * 1.22 or 1)
    axes.set_xlabel("FLOPs of one request")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: with_unit(round(value))))
    axes.spines[["top", "right"]].set_visible(False)
    workload = report["metadata"]["workload"]
    axes.set_title(
        f"{report['metadata']['model']}, {workload['mode']}: {describe_views(workload)}, "
        f"{workload['prompt_tokens']:,} prompt tokens",
        loc="left",
        fontsize=10,
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
