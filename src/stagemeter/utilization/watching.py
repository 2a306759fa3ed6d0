"""The utilization of live serving engines, interval by interval. Needs no torch.

An interval credits the requests that finished in it, since only their lengths are known. If tokens were processed and
no request finished, its work is not known yet, and the interval joins the next one. So FLOPs add up over the intervals
to those of the whole, or, where histograms give bounds, to bounds that lie within those of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, PREFILL, TOTAL
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Peak
from stagemeter.profiling.devices import GIVEN, Devices, devices_of
from stagemeter.profiling.readers.energy import Energy
from stagemeter.profiling.readers.live import Served
from stagemeter.utilization.mixed_lengths import requests_work
from stagemeter.utilization.pairing import pair, why_no_hfu
from stagemeter.utilization.serving import engine_section
from stagemeter.utilization.traffic import least_bytes

#: Quantities of `engine_section` that an interval has.
_SHARES = ("mfu", "mfu_causal", "mfu_least", "mfu_most", "mbu_least")
_HOUR = 3600


@dataclass
class Watching:
    """The intervals of a watch, and their sum.

    Attributes
    ----------
    report : mapping
        A static report with a closed form.
    plan : callable
        Return the workload of the lengths that were measured.
    peak : Peak
        Peak rates of one device.
    devices_per_engine : int or None
        Devices of an engine as given; None: one.
    whole : Served or None
        The sum of all intervals.
    energy, powered : Energy or None, Served or None
        The sum of energies, and what was served meanwhile.
    """

    report: Mapping[str, Any]
    plan: Callable[[Mapping[str, int]], Workload]
    peak: Peak
    devices_per_engine: int | None = None
    whole: Served | None = None
    energy: Energy | None = None
    powered: Served | None = None
    _waiting: Served | None = field(default=None, repr=False)
    _unpowered: Served | None = field(default=None, repr=False)

    def devices(self, served: Served) -> Devices:
        """Return the devices of some engines."""
        given = None if self.devices_per_engine is None else self.devices_per_engine * served.engines
        return devices_of(given, served.engines, GIVEN)

    def add(self, served: Served) -> dict[str, Any]:
        """Take an interval, and return its numbers.

        ``serving`` has rates, shares and numbers of things by name, and ``serving_flops`` the FLOPs by stage of the
        requests that finished: empty while some are under way and none has finished.
        """
        self.whole, self._unpowered = _sum(self.whole, served), _sum(self._unpowered, served)
        processed, requests = served.processed, served.requests
        values = {"seconds": served.seconds, "engines": served.engines, "requests": requests}
        values |= self._rates(served, processed)
        devices = self.devices(served)
        for share, rate in (("mfu", self.peak.flops_per_second), ("mbu", self.peak.bytes_per_second)):
            estimated = processed.get("estimated_flops" if share == "mfu" else "estimated_bytes")
            if estimated and rate is not None:
                values[f"engine_{share}"] = estimated * devices.per_request / (rate * devices.count * served.seconds)
        waiting = _sum(self._waiting, served)
        worked = requests or processed.get("prompt_tokens") or processed.get("new_tokens")
        flops: dict[str, int] = {}
        if requests:
            try:
                work, flops = self._work(waiting)
            except StagemeterError as error:
                return self._wait(waiting, values, str(error))
            values |= work
        elif worked or self._waiting is not None:
            return self._wait(waiting, values, "no request finished yet")
        else:
            known = "passes" in processed and self.peak.bytes_per_second is not None
            values |= dict.fromkeys(("mfu", "mfu_causal", *(["mbu_least"] if known else [])), 0.0)
        self._waiting = None
        return {"serving": values, "serving_flops": flops, "waits": ""}

    def _wait(self, waiting: Served, values: dict[str, float], why: str) -> dict[str, Any]:
        self._waiting = waiting
        return {"serving": values, "serving_flops": {}, "waits": why}

    def _work(self, served: Served) -> tuple[dict[str, float], dict[str, int]]:
        """Return the utilization of requests that finished, and their FLOPs by stage."""
        profile, devices = served.profile(), self.devices(served)
        workload = self.plan(profile.measured)
        work = requests_work(self.report, workload, profile.lengths)
        pairing = pair(
            self.report, profile.medians, workload, self.peak, None, devices, work, why_no_hfu(profile.source)
        )
        passes = profile.metrics.get("engine/passes")
        moved = least_bytes(self.report, workload, profile.lengths, passes, served.engines)
        section = engine_section(pairing, profile.metrics, devices, work, moved=moved)
        assert section is not None, "a closed form counts every stage"
        flops = {stage: served.requests * number for stage, number in pairing["counts"]["flops"].items()}
        if work is not None:
            flops |= {stage: work.parts["flops"][stage].estimate for stage in (PREFILL, DECODE)}
        flops[TOTAL] = section["flops"]
        values = {name: section[name] for name in _SHARES if name in section}
        return {**values, "work_seconds": served.seconds}, flops

    def _rates(self, served: Served, processed: Mapping[str, float]) -> dict[str, float]:
        """Return rates of tokens and requests, and shares of hits, as far as the page has them."""
        values = {
            f"{name}_per_second": processed[name] / served.seconds
            for name in ("prompt_tokens", "computed_tokens", "new_tokens")
            if name in processed
        }
        values["requests_per_hour"] = served.requests * _HOUR / served.seconds
        if self._reads_pages:
            values["pages_per_hour"] = self._pages(served) * _HOUR / served.seconds
        for cache in ("prefix", "multimodal"):
            asked, hits = processed.get(f"{cache}_queries"), processed.get(f"{cache}_hits")
            if asked and hits is not None:
                values[f"{cache}_hit_rate"] = hits / asked
        return values

    @property
    def _reads_pages(self) -> bool:
        return bool(self.report["metadata"]["workload"]["global_views"])

    def _pages(self, served: Served) -> float:
        """Return the pictures that the multimodal cache was asked for, else one for each request that finished."""
        return served.processed.get("multimodal_queries") or served.requests

    def use(self, energy: Energy) -> dict[str, float]:
        """Take the energy since the last time, all intervals since then included, and return its numbers."""
        served, self._unpowered = self._unpowered, None
        if served is None:
            return {}
        before = self.energy or Energy(0.0, 0.0)
        self.energy = Energy(before.joules + energy.joules, before.seconds + energy.seconds)
        self.powered = _sum(self.powered, served)
        return self.shares(energy, served)

    def shares(self, energy: Energy, served: Served) -> dict[str, float]:
        """Return the power, and the energy of a new token, a request and a page."""
        values = {"joules": energy.joules, "watts": energy.joules / energy.seconds}
        of = {"new_token": served.processed.get("new_tokens"), "request": served.requests}
        of["page"] = self._pages(served) if self._reads_pages else None
        return values | {f"joules_per_{what}": energy.joules / count for what, count in of.items() if count}

    def lose(self) -> None:
        """Leave out what was served since energy was last known."""
        self._unpowered = None


def _sum(earlier: Served | None, served: Served) -> Served:
    return served if earlier is None else earlier + served
