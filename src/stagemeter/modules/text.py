"""The report of a module as a table for a terminal, which `print` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagemeter.core.terminal import plain_text
from stagemeter.core.units import percentage, with_unit

if TYPE_CHECKING:
    from stagemeter.modules.report import ModuleReport, ModuleStage


#: Share of the model's FLOPs from which on another count is shown beside them.
_SHOWN_FROM = 0.001
#: Counts that can differ from the model's FLOPs, with the lines that say why.
_OTHERS = {
    "causal": ("flops_causal", "each query with the keys that it sees"),
    "executed": (
        "flops_executed",
        "with what activation checkpointing and the backward pass of fused attention compute again",
    ),
}


def module_text(report: ModuleReport) -> str:
    """Return the report as a table, with its notes below."""
    lines = [*differences(report), call_line(report), *(f"note: {note}" for note in report.notes)]
    return "\n".join([plain_text(stage_table(report), title=f"{report.model}, {report.mode}"), *lines])


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
    return [
        name
        for name, (quantity, _) in _OTHERS.items()
        if any(_differs(stage.flops, getattr(stage, quantity)) for stage in report.rows())
    ]


def _differs(flops: int, other: int | None) -> bool:
    return other is not None and abs(other - flops) > _SHOWN_FROM * flops


def _beside(flops: int, other: int | None) -> str:
    factor = f" ({other / flops:.3g} x)" if other is not None and flops and _differs(flops, other) else ""
    return f"{with_unit(other)}{factor}"


def _row(stage: ModuleStage, total: ModuleStage, others: list[str], train: bool) -> list[str]:
    passes = [with_unit(stage.flops_forward), with_unit(stage.flops_backward)] if train else []
    moved = None if stage.bytes_read is None or stage.bytes_written is None else stage.bytes_read + stage.bytes_written
    share = "" if stage.name == "total" else percentage(stage.flops, total.flops)
    return [
        stage.name,
        with_unit(stage.params),
        with_unit(stage.flops),
        *(_beside(stage.flops, getattr(stage, _OTHERS[name][0])) for name in others),
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
