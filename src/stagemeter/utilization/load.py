"""The section of a report on a rate of pages: the devices that each stage keeps busy.

A stage keeps ``rate * seconds of a page`` devices busy. Its seconds are those of its bound. At an MFU they are FLOPs
over MFU times peak, as in the definition of MFU (PaLM, https://arxiv.org/abs/2204.02311, appendix B), and never fewer
than the bound's. So a decode step, which waits for memory, takes its bound at an MFU that it cannot reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, VISION
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Peak
from stagemeter.utilization.bounds import request_parts
from stagemeter.utilization.work import Work, work_of_report

if TYPE_CHECKING:
    from stagemeter.core.bound_types import LoadSection, StageLoad

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Load:
    """A rate of pages, and the MFU that stages reach.

    Attributes
    ----------
    pages_per_hour : float
        Pages; of a text, requests.
    mfu : float or mapping, optional
        MFU of every stage, or that of each by name, attention counted dense.
    source : str, optional
        The run that the MFU was measured in.
    """

    pages_per_hour: float
    mfu: float | Mapping[str, float] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.pages_per_hour < math.inf:
            raise StagemeterError(f"pages_per_hour: {self.pages_per_hour:g} is no rate. Give a number above zero")
        if not (self.mfu is None or isinstance(self.mfu, Mapping) or 0 < self.mfu <= 1):
            percent = f", such as {self.mfu / 100:g} for {self.mfu:g} %" if 1 < self.mfu <= 100 else ""
            raise StagemeterError(f"mfu: {self.mfu:g} is no share of a peak. Give one above 0 and up to 1{percent}")

    def mfu_of(self, stage: str) -> float | None:
        """Return the MFU of a stage; None where it is not known."""
        return self.mfu.get(stage) if isinstance(self.mfu, Mapping) else self.mfu


def load_section(report: Mapping[str, Any], peak: Peak, load: Load) -> LoadSection:
    """Return the devices that a rate keeps busy, by stage; see `stagemeter.core.bound_types.LoadSection`.

    The report has the bounds of that peak.
    """
    workload = Workload.from_dict(report["metadata"]["workload"])
    work, bounds, fits = work_of_report(report), report["roofline"]["bounds"], report["roofline"]["memory"]["fits"]
    at_once = workload.batch_size * (workload.pages if workload.global_views else 1)
    per_second = load.pages_per_hour / _SECONDS_PER_HOUR / at_once
    rows: dict[str, StageLoad] = {}
    for name, stages in request_parts(report["stages"]).items():
        if name not in bounds or name in (VISION, FORWARD, DECODE):
            continue
        # Without a decode step, there is no bound of one.
        found = {stage: bounds.get(DECODE_TOTAL if stage == DECODE else stage) for stage in stages}
        parts = {stage: bound for stage, bound in found.items() if bound is not None}
        reached = [_reached_ms(load, stage, work[stage], bound["roofline_ms"], peak) for stage, bound in parts.items()]
        rows[name] = {
            "devices": _busy([bound["roofline_ms"] for bound in parts.values()], per_second, fits),
            "devices_every_expert": _busy(
                [bound["roofline_ms_every_expert"] for bound in parts.values()], per_second, fits
            ),
            "devices_at_mfu": _busy(reached, per_second, fits),
            "mfu": load.mfu_of(stages[0]) if len(stages) == 1 else None,
        }
    return {
        "pages_per_hour": load.pages_per_hour,
        "unit": "page" if workload.global_views else "request",
        "mfu": None if isinstance(load.mfu, Mapping) else load.mfu,
        "mfu_source": load.source,
        "stages": rows,
    }


def _busy(milliseconds: list[float | None], per_second: float, fits: bool | None) -> float | None:
    """Return the devices that some times keep busy; None where one is unknown, and where the work does not fit."""
    if fits is False or any(time is None for time in milliseconds):
        return None
    return per_second * sum(time for time in milliseconds if time is not None) / 1e3


def _reached_ms(load: Load, stage: str, work: Work, least: float | None, peak: Peak) -> float | None:
    mfu = load.mfu_of(stage)
    if mfu is None:
        return None
    return max(1e3 * work.flops / (mfu * peak.flops_per_second), least or 0.0)
