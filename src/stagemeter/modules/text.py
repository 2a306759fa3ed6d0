"""The report of a module as a table for a terminal, which `print` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagemeter.core.terminal import plain_text
from stagemeter.core.units import percentage, with_unit

if TYPE_CHECKING:
    from stagemeter.modules.report import ModuleReport, ModuleStage


def module_text(report: ModuleReport) -> str:
    """Return the report as a table, with its notes below."""
    lines = [call_line(report), *(f"note: {note}" for note in report.notes)]
    return "\n".join([plain_text(stage_table(report), title=f"{report.model}, {report.mode}"), *lines])


def stage_table(report: ModuleReport) -> list[list[str]]:
    """Return a row for each stage, the header first."""
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


def call_line(report: ModuleReport) -> str:
    """Describe the arguments of the module, and how it was counted."""
    where = "from shapes alone" if report.counted_on == "meta" else f"by running it on {report.counted_on}"
    return (
        f"called with {', '.join(report.inputs) or 'nothing'}; {report.dtype or 'no floating point'}; counted {where}"
    )
