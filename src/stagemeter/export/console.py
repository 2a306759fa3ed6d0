"""The report on a terminal: one compact table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagemeter.export.markdown import stage_agreement
from stagemeter.export.roofline_text import roofline_lines
from stagemeter.export.units import describe_views, percentage, with_unit
from stagemeter.report import request_total


def print_report(report: Mapping[str, Any]) -> None:
    """Print stages with parameters, FLOPs, share and agreement on stdout."""
    workload, total = report["metadata"]["workload"], report["total"]
    table = Table(
        title=Text(report["metadata"]["model"]), title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("stage")
    for column in ("params", "FLOPs", "share", "bytes moved", "counts agree"):
        table.add_column(column, justify="right")
    flops = request_total(report, "flops")
    read, written = request_total(report, "bytes_read"), request_total(report, "bytes_written")
    for name, stage in report["stages"].items():
        table.add_row(
            f"decode x {stage['steps']:,}" if name == "decode" else name,
            with_unit(stage["params"]),
            with_unit(flops[name]),
            percentage(flops[name], total["flops"]),
            with_unit(read[name] + written[name], "B"),
            stage_agreement(stage),
        )
    table.add_row(
        "total",
        with_unit(total["params"]),
        with_unit(total["flops"]),
        "",
        with_unit(total["bytes_read"] + total["bytes_written"], "B"),
        report["agreement"]["status"],
        style="bold",
    )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"page {workload['image_width']}x{workload['image_height']}, "
        f"mode {workload['mode']}: {describe_views(workload)}; "
        f"{workload['image_tokens']:,} image + {workload['text_tokens']:,} text tokens, "
        f"{workload['new_tokens']:,} new tokens, batch {workload['batch_size']}, {workload['dtype']}",
        markup=False,
    )
    for line in roofline_lines(report):
        console.print(line, markup=False)
    # The first note states the conventions, which the table's reader knows or finds in the report.
    for note in report["notes"][1:]:
        console.print(f"note: {note}", markup=False)
