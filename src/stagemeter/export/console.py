"""The report on a terminal: one compact table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.report import request_total
from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import describe_dtypes, describe_views, percentage, with_unit
from stagemeter.export.markdown import stage_agreement
from stagemeter.export.roofline_text import bounds_table, peak_title, roofline_lines


def print_report(report: Mapping[str, Any]) -> None:
    """Print stages with parameters, FLOPs, share and agreement on stdout."""
    workload, total = report["metadata"]["workload"], report["total"]
    rows = [["stage", "params", "FLOPs", "share", "bytes moved", "counts agree"]]
    flops = request_total(report, "flops")
    read, written = request_total(report, "bytes_read"), request_total(report, "bytes_written")
    for name, stage in report["stages"].items():
        rows.append(
            [
                f"decode x {stage['steps']:,}" if name == "decode" else name,
                with_unit(stage["params"]),
                with_unit(flops[name]),
                percentage(flops[name], total["flops"]),
                with_unit(read[name] + written[name], "B"),
                stage_agreement(report, name),
            ]
        )
    rows.append(
        [
            "total",
            with_unit(total["params"]),
            with_unit(total["flops"]),
            "",
            with_unit(total["bytes_read"] + total["bytes_written"], "B"),
            report["agreement"]["status"],
        ]
    )
    adapter = report["adapter"]
    if adapter is not None:
        moved = adapter["total"]["bytes_read"] + adapter["total"]["bytes_written"]
        share = percentage(adapter["total"]["flops"], total["flops"])
        apart = [with_unit(adapter["params"]), with_unit(adapter["total"]["flops"]), share, with_unit(moved, "B")]
        rows.append([f"adapter, rank {adapter['rank']:,}", *apart, "apart"])
    print_table(rows, title=report["metadata"]["model"])
    # The first note states the conventions, which the table's reader knows or finds in the report.
    print_lines([_page(workload), *(f"note: {note}" for note in report["notes"][1:])])
    roofline = report["roofline"]
    if roofline is not None:
        print_lines([""])
        print_table(bounds_table(roofline), title=f"At best on {peak_title(roofline['peak'])}")
        print_lines(roofline_lines(roofline))


def _page(workload: dict[str, Any]) -> str:
    video = workload.get("video_frames")
    what = "page" if video is None else f"video of {video:,} frames"
    page = (
        f"{what} {workload['image_width']}x{workload['image_height']}, "
        f"mode {workload['mode']}: {describe_views(workload)}; {workload['image_tokens']:,} image + "
        if workload["global_views"]
        else ""
    )
    return (
        f"{page}{workload['text_tokens']:,} text tokens, "
        f"{workload['new_tokens']:,} new tokens, batch {workload['batch_size']}, {describe_dtypes(workload)}"
    )
