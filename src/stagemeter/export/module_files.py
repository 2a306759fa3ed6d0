"""The report of any module as files."""

from __future__ import annotations

from stagemeter.export.figures import bar_chart
from stagemeter.export.json_file import report_json
from stagemeter.export.module_text import module_markdown
from stagemeter.modules.report import ModuleReport

MODULE_JSON_FILE, MODULE_MARKDOWN_FILE, MODULE_CHART_FILE = "module_compute.json", "module_compute.md", "flops.png"


def module_files(report: ModuleReport) -> dict[str, str | bytes]:
    """Return the contents of a report's files by name: JSON, Markdown and a chart."""
    flops = {stage.name: stage.flops for stage in report.rows()[:-1]} or {"total": report.total.flops}
    return {
        MODULE_JSON_FILE: report_json(report.to_dict()),
        MODULE_MARKDOWN_FILE: module_markdown(report),
        MODULE_CHART_FILE: bar_chart(flops, report.total.flops, f"FLOPs, {report.mode}", report.model),
    }
