"""The report of any module as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagemeter.export.charts import bar_figure, picture
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document
from stagemeter.modules.report import ModuleReport
from stagemeter.modules.text import call_line, differences, stage_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def module_markdown(report: ModuleReport) -> str:
    """Return the report as Markdown."""
    document = Document()
    document.header(1, f"{report.model}, {report.mode}")
    document.paragraph(call_line(report))
    document.table(stage_table(report))
    for line in differences(report):
        document.paragraph(line)
    document.header(2, "Operators, in executed FLOPs")
    rows = [["Stage", "Operator", "FLOPs"]]
    for stage in report.rows()[:-1]:
        for operator, flops in sorted(stage.operators.items(), key=lambda item: -item[1]):
            rows.append([stage.name, operator, f"{flops:,}"])
    document.table(rows, ["left", "left", "right"])
    document.section("Notes", report.notes)
    return str(document)


MODULE_JSON_FILE, MODULE_MARKDOWN_FILE, MODULE_CHART_FILE = "module_compute.json", "module_compute.md", "flops.png"


def module_files(report: ModuleReport) -> dict[str, str | bytes]:
    """Return the contents of a report's files by name: JSON, Markdown and a chart."""
    return {
        MODULE_JSON_FILE: json_text(report.to_dict()),
        MODULE_MARKDOWN_FILE: module_markdown(report),
        MODULE_CHART_FILE: picture(module_figure(report)),
    }


def module_figure(report: ModuleReport) -> Figure:
    """Draw the FLOPs of each stage."""
    flops = {stage.name: stage.flops for stage in report.rows()[:-1]} or {"total": report.total.flops}
    return bar_figure(flops, report.total.flops, f"FLOPs, {report.mode}", report.model)
