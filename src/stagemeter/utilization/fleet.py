"""The number of devices that a number of pages a day needs, and the assumptions behind it. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.roofline import Peak

SECONDS_PER_DAY = 86_400
#: Sources of the speed.
ROOFLINE, UTILIZATION, MEASURED = "roofline", "mfu", "measured"
#: Tolerance for rounding where the utilization is that of the roofline.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PageCost:
    """Mean cost of the pages of a corpus, or cost of one request.

    Attributes
    ----------
    pages : int
        Pages that the mean is over.
    flops : float
        FLOPs per page.
    roofline_seconds : float or None
        Seconds per page at the device's roofline, with the fewest experts read; None where not known.
    largest_batch : int or None
        Largest batch of the most demanding page that may fit into the device's memory; None where not known.
    unit : str
        ``page``; ``request`` for a model that reads text alone.
    """

    pages: int
    flops: float
    roofline_seconds: float | None
    largest_batch: int | None
    unit: str = "page"


@dataclass(frozen=True)
class FleetSize:
    """Number of devices that are needed, and the speed of one that never waits.

    Attributes
    ----------
    devices : int
        Whole devices; at the roofline, a lower bound.
    mfu : float
        Utilization at this speed.
    basis : str
        ``mfu`` or ``measured``, or ``roofline``, which no run reaches.
    differences : sequence of str
        Differences of the run that gave the utilization: other work, or another device.
    """

    devices: int
    seconds_per_page: float
    pages_per_day_and_device: float
    mfu: float
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
    if mfu is not None and not 0 < mfu <= 1:
        raise StagemeterError(
            f"{_option(source)}: {_given(mfu, source)} is no share of the peak. Give one above 0 and up to 1"
        )
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
        basis=basis,
        differences=differences,
        assumptions=_assumptions(cost, peak, mfu, source, batch),
        unit=cost.unit,
    )


def _assumptions(cost: PageCost, peak: Peak, mfu: float | None, source: str | None, batch: int) -> list[str]:
    mean = f"one {cost.unit}" if cost.pages == 1 else f"the mean of {cost.pages:,} {cost.unit}s"
    lines = [
        f"a {cost.unit} costs {cost.flops:,.0f} FLOPs, {mean}, {batch} at once",
        f"peak of {peak.name}, {peak.dtype}: {peak.flops_per_second / 1e12:,.5g} TFLOP/s, {peak.source}",
        "every device runs 24 hours a day on this load only: loading, rendering, waiting and failures come on top",
    ]
    if mfu is None:
        lines.append("every stage runs at the roofline, with the fewest experts read: a lower bound of the devices")
    elif source is None:
        lines.append(f"an MFU of {100 * mfu:.3g} % of whole requests, as given")
    else:
        lines.append(f"the MFU of {source}, {100 * mfu:.3g} % of whole requests, holds here, too")
    if mfu is not None and cost.roofline_seconds is not None:
        most = _roofline_mfu(cost.flops, cost.roofline_seconds, peak)
        lines.append(f"at the roofline it would be {100 * most:.3g} % at this batch")
    return lines


def _roofline_mfu(flops: float, seconds: float, peak: Peak) -> float:
    return flops / (seconds * peak.flops_per_second)


def _require_below_roofline(mfu: float, cost: PageCost, peak: Peak, source: str | None) -> None:
    """Refuse a utilization that needs fewer devices than the roofline allows."""
    if cost.roofline_seconds is None:
        return
    most = _roofline_mfu(cost.flops, cost.roofline_seconds, peak)
    if mfu > most * (1 + _ROUNDING):
        roofline = f"{100 * most:.3g} % of {peak.name}'s roofline"
        raise StagemeterError(
            f"{_option(source)}: {_given(mfu, source)} is above the {roofline} for these {cost.unit}s at this batch. "
            f"Give the --batch-size and the {cost.unit}s that the utilization was measured at, or a lower --mfu"
        )


def _given(mfu: float, source: str | None) -> str:
    return f"{mfu:g}" if source is None else f"the MFU of {source}, {100 * mfu:.3g} %,"


def _option(source: str | None) -> str:
    return "--mfu" if source is None else "--from-run"
