"""The report of any module as a table."""

from __future__ import annotations

from stagemeter.export.document import add_header, add_list, add_paragraph, add_table, document_text, new_document
from stagemeter.export.terminal import plain_text
from stagemeter.export.units import percentage, with_unit
from stagemeter.modules.report import ModuleReport, ModuleStage


def module_text(report: ModuleReport) -> str:
    """Return the report as a table for a terminal, with what to know below it."""
    lines = [_called_with(report), *(f"note: {note}" for note in report.notes)]
    return "\n".join([plain_text(_table(report), title=f"{report.model}, {report.mode}"), *lines])


def module_markdown(report: ModuleReport) -> str:
    """Return the report as Markdown."""
    document = new_document()
    add_header(document, 1, f"{report.model}, {report.mode}")
    add_paragraph(document, _called_with(report))
    add_table(document, _table(report))
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


def _table(report: ModuleReport) -> list[list[str]]:
    train = report.total.backward is not None
    passes = ["forward", "backward"] if train else []
    rows = [["stage", "params", "FLOPs", *passes, "share", "activations", "bytes moved"]]
    return rows + [_row(stage, report.total, train) for stage in report.rows()]


def _row(stage: ModuleStage, total: ModuleStage, train: bool) -> list[str]:
    passes = [with_unit(stage.flops_forward), with_unit(stage.flops_backward)] if train else []
    moved = None if stage.bytes_read is None or stage.bytes_written is None else stage.bytes_read + stage.bytes_written
    share = "" if stage.name == "total" else percentage(stage.flops, total.flops)
    return [
        stage.name,
        with_unit(stage.params),
        with_unit(stage.flops),
        *passes,
        share,
        with_unit(stage.activations),
        with_unit(moved, "B"),
    ]


def _called_with(report: ModuleReport) -> str:
    where = "from shapes alone" if report.counted_on == "meta" else f"by running it on {report.counted_on}"
    return (
        f"called with {', '.join(report.inputs) or 'nothing'}; {report.dtype or 'no floating point'}; counted {where}"
    )
