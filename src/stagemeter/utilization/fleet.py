"""The number of devices that a number of pages a day needs, and the assumptions behind it. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stagemeter.core.cost import differing_factor
from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.roofline import Peak

SECONDS_PER_DAY = 86_400
#: Sources of the speed.
ROOFLINE, UTILIZATION, MEASURED = "roofline", "mfu", "measured"
#: Tolerance for rounding where the utilization is that of the roofline.
_ROUNDING = 1e-9
#: A given share above this is a percentage: counts of attention that no mask hides reach less than twice the peak.
_PERCENT = 2


@dataclass(frozen=True)
class PageCost:
    """Mean cost of the pages of a corpus, or cost of one request.

    Attributes
    ----------
    pages : int
        Pages that the mean is over.
    flops, flops_causal : float
        FLOPs per page, with attention counted dense, and by the pairs that masks show.
    roofline_seconds : float or None
        Seconds per page at the device's roofline, with the fewest experts read; None where not known.
    largest_batch : int or None
        Largest batch of the most demanding page that may fit into the device's memory; None where not known.
    unit : str
        ``page``; ``request`` for a model that reads text alone, and for a log.
    of_log : bool
        Whether the mean is over a log, which does not say what is computed together: weights are read for nothing.
    """

    pages: int
    flops: float
    flops_causal: float
    roofline_seconds: float | None
    largest_batch: int | None
    unit: str = "page"
    of_log: bool = False

    def least_seconds(self, peak: Peak) -> float:
        """Return the least time of a page: that of the roofline, or without a bandwidth of the arithmetic alone."""
        arithmetic = self.flops_causal / peak.flops_per_second
        return arithmetic if self.roofline_seconds is None else self.roofline_seconds


@dataclass(frozen=True)
class FleetSize:
    """Number of devices that are needed, and the speed of one that never waits.

    Attributes
    ----------
    devices : int
        Whole devices; at the roofline, a lower bound.
    mfu, mfu_causal : float
        Utilization at this speed, with attention counted dense, and by the pairs that masks show. A kernel that skips
        the other pairs can reach a dense one above 1.
    basis : str
        ``mfu`` or ``measured``, or ``roofline``, which no run reaches.
    differences : sequence of str
        Differences of the run that gave the utilization: other work, or another device.
    """

    devices: int
    seconds_per_page: float
    pages_per_day_and_device: float
    mfu: float
    mfu_causal: float
    basis: str
    differences: Sequence[str]
    assumptions: Sequence[str]
    unit: str = "page"

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON types."""
        return {**asdict(self), "differences": list(self.differences), "assumptions": list(self.assumptions)}


def devices_needed(
    pages_per_day: float,
    cost: PageCost,
    peak: Peak,
    mfu: float | None,
    source: str | None,
    batch: int,
    differences: Sequence[str] = (),
) -> FleetSize:
    """Return the number of devices that a number of pages a day needs, or raise StagemeterError if it is impossible.

    Without an MFU of whole requests, the speed is that of the roofline, which no run reaches. `source` is the run of
    the utilization, and `differences` say where that run was other work or on another device. `batch` is pages at once.
    """
    if not 0 < pages_per_day < math.inf:
        raise StagemeterError(f"--pages-per-day: {pages_per_day:g} is no load. Give a number above zero")
    if mfu is not None and not 0 < mfu < math.inf:
        raise StagemeterError(f"{_option(source)}: {_given(mfu, source)} is no share of the peak. Give one above 0")
    if cost.largest_batch == 0:
        raise StagemeterError(
            f"--device: one {cost.unit} does not fit into {peak.name}; `analyze --device` says what it needs. Give a "
            "device of more memory"
        )
    if cost.largest_batch is not None and batch > cost.largest_batch:
        raise StagemeterError(
            f"--batch-size: {batch} of these {cost.unit}s do not fit into {peak.name}. Give at most "
            f"{cost.largest_batch}"
        )
    basis = UTILIZATION if source is None else MEASURED
    if mfu is None:
        if cost.roofline_seconds is None:
            raise StagemeterError(f"--device {peak.name}: its bandwidth is not known. Give --mfu X or --from-run RUN")
        basis, seconds = ROOFLINE, cost.roofline_seconds
    else:
        _require_below_roofline(mfu, cost, peak, source)
        seconds = cost.flops / (mfu * peak.flops_per_second)
    per_day = SECONDS_PER_DAY / seconds
    return FleetSize(
        devices=math.ceil(pages_per_day / per_day),
        seconds_per_page=seconds,
        pages_per_day_and_device=per_day,
        mfu=cost.flops / (seconds * peak.flops_per_second),
        mfu_causal=cost.flops_causal / (seconds * peak.flops_per_second),
        basis=basis,
        differences=differences,
        assumptions=_assumptions(cost, peak, mfu, source, batch),
        unit=cost.unit,
    )


def _assumptions(cost: PageCost, peak: Peak, mfu: float | None, source: str | None, batch: int) -> list[str]:
    mean = f"one {cost.unit}" if cost.pages == 1 else f"the mean of {cost.pages:,} {cost.unit}s"
    visible = f", {cost.flops_causal:,.0f} by visible pairs" if _masked(cost) else ""
    together = "" if cost.of_log else f", {batch} at once"
    lines = [
        f"a {cost.unit} costs {cost.flops:,.0f} FLOPs{visible}, {mean}{together}",
        f"peak of {peak.name}, {peak.dtype}: {peak.flops_per_second / 1e12:,.5g} TFLOP/s, {peak.source}",
        "every device runs 24 hours a day on this load only: loading, rendering, waiting and failures come on top",
    ]
    if cost.of_log:
        lines.append("what fits into memory is not checked: a log does not say which requests run together")
    if mfu is None and cost.of_log:
        lines.append("arithmetic and KV cache run at the roofline, weights cost no time: a lower bound of the devices")
    elif mfu is None:
        lines.append("every stage runs at the roofline, with the fewest experts read: a lower bound of the devices")
    elif source is None:
        lines.append(f"an MFU of {100 * mfu:.3g} % of whole requests, as given")
    else:
        lines.append(f"the MFU of {source}, {100 * mfu:.3g} % of whole requests, holds here, too")
    if mfu is not None and cost.roofline_seconds is not None:
        lines.append(
            f"at the roofline it would be {_most_in_words(cost, peak)}{'' if cost.of_log else ' at this batch'}"
        )
    return lines


def utilization_in_words(mfu: float, mfu_causal: float) -> str:
    """Return a utilization in percent, and that by visible pairs where it differs."""
    visible = f" ({100 * mfu_causal:.3g} % by visible pairs)" if differing_factor(mfu_causal, mfu) is not None else ""
    return f"{100 * mfu:.3g} %{visible}"


def _most(flops: float, cost: PageCost, peak: Peak) -> float:
    return flops / (cost.least_seconds(peak) * peak.flops_per_second)


def _most_in_words(cost: PageCost, peak: Peak) -> str:
    return utilization_in_words(_most(cost.flops, cost, peak), _most(cost.flops_causal, cost, peak))


def _masked(cost: PageCost) -> bool:
    return differing_factor(cost.flops_causal, cost.flops) is not None


def _require_below_roofline(mfu: float, cost: PageCost, peak: Peak, source: str | None) -> None:
    """Refuse a utilization that needs fewer devices than the roofline allows."""
    if mfu > _most(cost.flops, cost, peak) * (1 + _ROUNDING):
        roofline = f"{_most_in_words(cost, peak)} of {peak.name}'s roofline"
        way_out = "Give a lower --mfu"
        if mfu > _PERCENT and source is None:
            way_out = f"Give a share of 1, such as {mfu / 100:g} for {mfu:g} %"
        elif not cost.of_log:
            way_out = f"Give the --batch-size and the {cost.unit}s that it was measured at, or a lower --mfu"
        at_this = "" if cost.of_log else " at this batch"
        raise StagemeterError(
            f"{_option(source)}: {_given(mfu, source)} is above the {roofline} for these {cost.unit}s{at_this}. "
            f"{way_out}"
        )


def _given(mfu: float, source: str | None) -> str:
    return f"{mfu:g}" if source is None else f"the MFU of {source}, {100 * mfu:.3g} %,"


def _option(source: str | None) -> str:
    return "--mfu" if source is None else "--from-run"
