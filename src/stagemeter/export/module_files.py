"""The report of any module as files."""

from __future__ import annotations

from pathlib import Path

from stagemeter.export.figures import bar_chart
from stagemeter.export.files import write_whole
from stagemeter.export.json_file import report_json
from stagemeter.export.module_text import module_markdown
from stagemeter.modules.report import ModuleReport

MODULE_JSON_FILE, MODULE_MARKDOWN_FILE, MODULE_CHART_FILE = "module_compute.json", "module_compute.md", "flops.png"


def write_module_files(report: ModuleReport, folder: Path | str) -> list[Path]:
    """Write a report of any module as JSON, Markdown and a chart.

    Parameters
    ----------
    report : ModuleReport
        What `stagemeter.analyze` returned.
    folder : Path or str
        Where to; it is made if it is missing.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    StagemeterError
        If a file cannot be written.
    """
    target = Path(folder)
    flops = {stage.name: stage.flops for stage in report.rows()[:-1]} or {"total": report.total.flops}
    chart = bar_chart(flops, report.total.flops, f"FLOPs, {report.mode}", report.model)
    files = [
        write_whole(target / MODULE_JSON_FILE, report_json(report.to_dict())),
        write_whole(target / MODULE_MARKDOWN_FILE, module_markdown(report)),
    ]
    path = target / MODULE_CHART_FILE
    path.write_bytes(chart)
    return [*files, path]
