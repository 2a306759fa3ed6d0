"""The report of a module as a table for a terminal, which `print` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagemeter.core.cost import differing_factor
from stagemeter.core.terminal import Section
from stagemeter.core.units import digits_of, percentage, with_unit

if TYPE_CHECKING:
    from stagemeter.modules.report import ModuleReport, ModuleStage


#: Counts that can differ from the model's FLOPs, with the lines that say why.
_OTHERS = {
    "causal": ("flops_causal", "each query with the keys that it sees"),
    "executed": (
        "flops_executed",
        "all that ran, with pairs that a window or a chunk hides and what a backward pass computes again",
    ),
}


def module_sections(report: ModuleReport) -> list[Section]:
    """Return the table of stages, with the report's notes below."""
    lines = [*differences(report), call_line(report), *(f"note: {note}" for note in report.notes)]
    return [Section(f"{report.model}, {report.mode}", stage_table(report), lines)]


def stage_table(report: ModuleReport) -> list[list[str]]:
    """Return a row for each stage, the header first."""
    train = report.total.backward is not None
    passes = ["forward", "backward"] if train else []
    others = _others(report)
    rows = [["stage", "params", "FLOPs", *others, *passes, "share", "activations", "bytes moved"]]
    return rows + [_row(stage, report.total, others, train) for stage in report.rows()]


def differences(report: ModuleReport) -> list[str]:
    """Return a line for each count that the table shows beside the model's FLOPs."""
    return [f"{name}: {_OTHERS[name][1]}" for name in _others(report)]


def _others(report: ModuleReport) -> list[str]:
    """Return the names of counts that differ from the model's FLOPs."""
    return [name for name in _OTHERS if any(_factor(stage, name) is not None for stage in report.rows())]


def _factor(stage: ModuleStage, other: str) -> float | None:
    count = getattr(stage, _OTHERS[other][0])
    return None if count is None else differing_factor(count, stage.flops)


def _beside(stage: ModuleStage, other: str) -> str:
    factor = _factor(stage, other)
    return with_unit(getattr(stage, _OTHERS[other][0])) + (f" (x{digits_of(factor)})" if factor else "")


def _row(stage: ModuleStage, total: ModuleStage, others: list[str], train: bool) -> list[str]:
    passes = [with_unit(stage.flops_forward), with_unit(stage.flops_backward)] if train else []
    moved = None if stage.bytes_read is None or stage.bytes_written is None else stage.bytes_read + stage.bytes_written
    share = "" if stage.name == "total" else percentage(stage.flops, total.flops)
    return [
        stage.name,
        with_unit(stage.params),
        with_unit(stage.flops),
        *(_beside(stage, name) for name in others),
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
