"""The report of any module as Markdown."""

from __future__ import annotations

from stagemeter.export.document import add_header, add_list, add_paragraph, add_table, document_text, new_document
from stagemeter.modules.report import ModuleReport
from stagemeter.modules.text import call_line, stage_table


def module_markdown(report: ModuleReport) -> str:
    """Return the report as Markdown."""
    document = new_document()
    add_header(document, 1, f"{report.model}, {report.mode}")
    add_paragraph(document, call_line(report))
    add_table(document, stage_table(report))
    add_header(document, 2, "Operators, in FLOPs")
    rows = [["Stage", "Operator", "FLOPs"]]
    for stage in report.rows()[:-1]:
        for operator, flops in sorted(stage.operators.items(), key=lambda item: -item[1]):
            rows.append([stage.name, operator, f"{flops:,}"])
    add_table(document, rows, ["left", "left", "right"])
    if report.notes:
        add_header(document, 2, "Notes")
        add_list(document, report.notes)
    return document_text(document)
