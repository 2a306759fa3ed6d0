"""The devices that a daily load needs, for each device and batch size. Needs no torch.

Each request runs on one device, and a batch runs from start to end before the next. At the roofline, every stage takes
the least time of `stagemeter.utilization.bounds`, which no run reaches: the devices are a lower bound. At a given MFU,
a batch takes its FLOPs over MFU times peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, product
from typing import Any

from stagemeter.core.cost import differing_factor
from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.roofline import Peak, bound_by
from stagemeter.utilization.bounds import stage_bounds
from stagemeter.utilization.memory import MemoryNeed
from stagemeter.utilization.work import Work

SECONDS_PER_DAY, HOURS_PER_DAY = 86_400, 24
#: Sources of the speed.
ROOFLINE, UTILIZATION, MEASURED = "roofline", "mfu", "measured"
#: Tolerance for rounding where the utilization is that of the roofline.
_ROUNDING = 1e-9
#: A given share above this is a percentage: counts of attention that no mask hides reach less than twice the peak.
_PERCENT = 2


@dataclass(frozen=True)
class Load:
    """The work of a mean page, or of a mean request, where a batch of equal requests runs together.

    Attributes
    ----------
    batch_size : int or None
        Requests at once; None for a log, which does not say what runs together.
    at_once : float or None
        Pages of a batch, or its requests.
    parts : sequence of (float, mapping of str to Work)
        Different batches: how many of each a page takes, and the work of its stages.
    memory : MemoryNeed or None
        That of the most demanding batch; None where not known.
    weights : int
        Bytes of the weights that any pass reads.
    bounded : bool
        Whether the bytes are known, so that there is a roofline.
    """

    batch_size: int | None
    at_once: float | None
    parts: Sequence[tuple[float, Mapping[str, Work]]]
    memory: MemoryNeed | None
    weights: int
    bounded: bool = True

    @cached_property
    def flops(self) -> float:
        """FLOPs of a page, with attention counted dense."""
        return sum(share * work.flops for share, stages in self.parts for work in stages.values())

    @cached_property
    def flops_causal(self) -> float:
        """FLOPs of a page, by the pairs that masks show."""
        return sum(share * work.flops_causal for share, stages in self.parts for work in stages.values())

    @property
    def needed_bytes(self) -> int:
        """A lower bound on the memory of a batch."""
        return self.weights if self.memory is None else self.memory.needed

    def least(self, peak: Peak) -> tuple[float, str, str]:
        """Return the least seconds of a page, the stage that takes most of them, and the resource that sets those.

        The fewest experts are read. Where bytes are not known, the time is that of the arithmetic alone.
        """
        times: dict[tuple[str, str], float] = {}
        for share, stages in self.parts:
            for stage, work in stages.items():
                fewest, most = stage_bounds(work, peak)
                milliseconds = fewest.ms if self.bounded else fewest.compute_ms
                key = stage, bound_by([fewest], [most]) if self.bounded else "compute"
                times[key] = times.get(key, 0.0) + share * milliseconds
        stage, resource = max(times, key=lambda key: times[key])
        return sum(times.values()) / 1e3, stage, resource

    def with_every_expert(self, peak: Peak) -> float:
        """Return the least seconds of a page where tokens read every expert that they can reach."""
        bounds = ((share, stage_bounds(work, peak)[1]) for share, stages in self.parts for work in stages.values())
        return sum(share * bound.ms for share, bound in bounds) / 1e3


@dataclass(frozen=True)
class Speed:
    """The devices that a load needs at a speed, and what it costs.

    Attributes
    ----------
    devices : int
        Whole devices.
    seconds_each : float
        Seconds of a device for a page.
    batch_seconds : float or None
        Seconds from start to end of a batch, which each of its requests takes; None for a log.
    per_day_and_device : float
        Pages a day of a device that never waits.
    mfu, mfu_causal : float
        Utilization, with attention counted dense, and by the pairs that masks show. A kernel that skips the other pairs
        can reach a dense one above 1.
    cost_per_day, cost_per_thousand : float or None
        Price of whole devices for a day, and of the time that a thousand pages take; None without a price.
    """

    devices: int
    seconds_each: float
    batch_seconds: float | None
    per_day_and_device: float
    mfu: float
    mfu_causal: float
    cost_per_day: float | None
    cost_per_thousand: float | None


@dataclass(frozen=True)
class Choice:
    """A device at a batch size.

    Attributes
    ----------
    fits : bool or None
        Whether a batch may fit into the device's memory; None where not known. What does not fit has no speed.
    weights_bytes, kv_cache_bytes, needed_bytes, device_bytes : int or None
        A lower bound on the memory that is needed, with two parts of it, and the memory of the device.
    at_roofline : Speed or None
        At the device's roofline: no run is faster, so its devices are the least, and its costs, too.
    at_mfu : Speed or None
        At the MFU that was given or measured; None without one, and where the roofline rules it out.
    mostly_in, bound_by : str or None
        The stage that takes most of the time at the roofline, and the resource that sets it.
    devices_with_every_expert : int or None
        The least devices where tokens read every expert that they can reach; `at_roofline` lets them read the fewest.
        None where no experts are chosen, or without a roofline.
    differences : sequence of str
        Differences of the run that measured the MFU: other work, or another device.
    best : bool
        Whether the device needs the fewest devices at this batch; of several batches, the one that is done first.
    """

    device: str
    batch_size: int | None
    fits: bool | None
    weights_bytes: int
    kv_cache_bytes: int | None
    needed_bytes: int
    device_bytes: int
    price_per_hour: float | None
    at_roofline: Speed | None
    at_mfu: Speed | None
    mostly_in: str | None
    bound_by: str | None
    devices_with_every_expert: int | None = None
    differences: Sequence[str] = ()
    best: bool = False

    @property
    def speed(self) -> Speed | None:
        """The speed that decides: at the MFU, where there is one."""
        return self.at_mfu or self.at_roofline


@dataclass(frozen=True)
class Plan:
    """The devices that a daily load needs, by device and batch size.

    Attributes
    ----------
    unit : str
        ``page`` or ``request``: what `per_day` counts.
    basis : str
        ``roofline``, ``mfu`` or ``measured``: where the speed comes from.
    mfu, source : float, str or None
        The MFU of whole requests, and the run that measured it.
    flops, flops_causal : float
        FLOPs of a page, with attention counted dense, and by the pairs that masks show.
    choices : sequence of Choice
        Every device at every batch size, in the order of the best of each device, the answer first.
    """

    model: str
    unit: str
    per_day: float
    basis: str
    mfu: float | None
    source: str | None
    flops: float
    flops_causal: float
    peaks: Sequence[Peak]
    choices: Sequence[Choice]
    request: str = ""
    notes: Sequence[str] = ()

    @property
    def best(self) -> list[Choice]:
        """The best batch size of each device that can do the work, the answer first."""
        return [choice for choice in self.choices if choice.best]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        peaks = [peak.to_dict() for peak in self.peaks]
        return {**asdict(self), "peaks": peaks, "choices": list(map(asdict, self.choices)), "notes": list(self.notes)}


@dataclass(frozen=True)
class Goal:
    """Pages or requests a day that a fleet has to process, its MFU if that is known, and prices for an hour."""

    unit: str
    per_day: float
    mfu: float | None = None
    source: str | None = None
    prices: Mapping[str, float] = field(default_factory=dict)

    def speed(self, load: Load, peak: Peak, seconds: float) -> Speed:
        """Return the devices where a page takes some seconds of one."""
        per_day, price = SECONDS_PER_DAY / seconds, self.prices.get(peak.name)
        devices = self._devices(seconds)
        return Speed(
            devices=devices,
            seconds_each=seconds,
            batch_seconds=None if load.at_once is None else seconds * load.at_once,
            per_day_and_device=per_day,
            mfu=load.flops / (seconds * peak.flops_per_second),
            mfu_causal=load.flops_causal / (seconds * peak.flops_per_second),
            cost_per_day=None if price is None else devices * price * HOURS_PER_DAY,
            cost_per_thousand=None if price is None else 1000 * seconds * price / 3600,
        )

    def choice(self, load: Load, peak: Peak) -> Choice:
        """Return a device at a batch size."""
        least, stage, resource = load.least(peak)
        memory, device_bytes = load.memory, peak.memory_bytes or 0
        fits = load.needed_bytes <= device_bytes if load.bounded else None
        rated = fits is not False
        every_expert = load.with_every_expert(peak)
        depends = rated and load.bounded and every_expert > least
        possible = self.mfu is not None and self.mfu <= most_mfu(load, peak) * (1 + _ROUNDING)
        return Choice(
            device=peak.name,
            batch_size=load.batch_size,
            fits=fits,
            weights_bytes=load.weights,
            kv_cache_bytes=None if memory is None else memory.kv_cache,
            needed_bytes=load.needed_bytes,
            device_bytes=device_bytes,
            price_per_hour=self.prices.get(peak.name),
            at_roofline=self.speed(load, peak, least) if rated and load.bounded else None,
            at_mfu=self.speed(load, peak, load.flops / ((self.mfu or 1) * peak.flops_per_second))
            if rated and possible
            else None,
            mostly_in=stage if load.bounded else None,
            bound_by=resource if load.bounded else None,
            devices_with_every_expert=self._devices(every_expert) if depends else None,
        )

    def _devices(self, seconds: float) -> int:
        """Return the whole devices that a day's load keeps busy, where a page takes some seconds of one."""
        return math.ceil(self.per_day * seconds / SECONDS_PER_DAY)


def most_mfu(load: Load, peak: Peak) -> float:
    """Return the MFU at the roofline, with attention counted dense."""
    return load.flops / (load.least(peak)[0] * peak.flops_per_second)


def utilization_in_words(mfu: float, mfu_causal: float) -> str:
    """Return a utilization in percent, and that by visible pairs where it differs."""
    visible = f" ({100 * mfu_causal:.3g} % by visible pairs)" if differing_factor(mfu_causal, mfu) is not None else ""
    return f"{100 * mfu:.3g} %{visible}"


def choices_of(goal: Goal, loads: Sequence[Load], peaks: Sequence[Peak]) -> list[Choice]:
    """Return every device at every batch size, or raise StagemeterError if none can do the work.

    Devices come in the order of their best batch size: by cost where prices are known, else by number.
    """
    if not 0 < goal.per_day < math.inf:
        raise StagemeterError(f"--{goal.unit}s-per-day: {goal.per_day:g} is no load. Give a number above zero")
    if goal.mfu is not None and not 0 < goal.mfu < math.inf:
        raise StagemeterError(f"{_option(goal)}: {_given(goal)} is no share of the peak. Give one above 0")
    by_device = [[goal.choice(load, peak) for load in loads] for peak in peaks]
    rated = product(peaks, loads)
    fitting = [pair for pair, choice in zip(rated, chain(*by_device), strict=True) if choice.fits is not False]
    if goal.mfu is not None and fitting and not any(choice.at_mfu for choice in chain(*by_device)):
        _refuse_above_roofline(goal, fitting)
    marked = [_mark_best(choices, goal.mfu is not None) for choices in by_device]
    return [choice for choices in sorted(marked, key=_order) for choice in choices]


def _mark_best(choices: Sequence[Choice], at_mfu: bool) -> list[Choice]:
    """Mark the batch size that needs the fewest devices; of several, the one that is done first."""

    def key(choice: Choice) -> tuple[float, ...]:
        decides = choice.at_mfu if at_mfu else choice.at_roofline
        if decides is None:
            return (math.inf,)
        # An MFU is the same at every batch size. The roofline says at which it is easier to reach.
        least = decides if choice.at_roofline is None else choice.at_roofline
        return decides.devices, least.devices, decides.batch_seconds or 0.0

    best = min(choices, key=key)
    return [replace(choice, best=choice is best and key(choice) != (math.inf,)) for choice in choices]


def _order(choices: Iterable[Choice]) -> tuple[float, ...]:
    best = next((choice.speed for choice in choices if choice.best), None)
    if best is None:
        return (math.inf,)
    cost = math.inf if best.cost_per_day is None else best.cost_per_day
    return cost, best.devices, best.batch_seconds or 0.0, best.seconds_each


def _refuse_above_roofline(goal: Goal, fitting: Sequence[tuple[Peak, Load]]) -> None:
    """Refuse a utilization that needs fewer devices than every roofline allows."""
    assert goal.mfu is not None
    peak, load = max(fitting, key=lambda pair: most_mfu(pair[1], pair[0]))
    most = most_mfu(load, peak)
    of_log = load.batch_size is None
    way_out = "Give a lower --mfu"
    if goal.mfu > _PERCENT and goal.source is None:
        way_out = f"Give a share of 1, such as {goal.mfu / 100:g} for {goal.mfu:g} %"
    elif not of_log:
        way_out = f"Give the --batch-size and the {goal.unit}s that it was measured at, or a lower --mfu"
    raise StagemeterError(
        f"{_option(goal)}: {_given(goal)} is above the "
        f"{utilization_in_words(most, most * load.flops_causal / load.flops)} of {peak.name}'s roofline for these "
        f"{goal.unit}s{'' if of_log else f' at batch {load.batch_size}'}. {way_out}"
    )


def _given(goal: Goal) -> str:
    return f"{goal.mfu:g}" if goal.source is None else f"the MFU of {goal.source}, {100 * (goal.mfu or 0):.3g} %,"


def _option(goal: Goal) -> str:
    return "--mfu" if goal.source is None else "--from-run"
