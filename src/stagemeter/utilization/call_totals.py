"""Sums over the calls of many traces, one call after the other. Needs no torch."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagemeter.analysis.calls import Call, UncountedError
from stagemeter.analysis.request_costs import Sums, quantiles
from stagemeter.core.cost import item_sizes
from stagemeter.core.stage_names import TOTAL
from stagemeter.utilization.calls import CallCost, CallMeter

#: The dearest traces that are kept.
_DEAREST = 10


@dataclass(frozen=True)
class Seen:
    """A call as a span shows it: the names of the span and of the model, and its beginning and end in seconds."""

    span: str
    model: str | None
    start: float
    end: float | None

    @property
    def seconds(self) -> float | None:
        """The seconds of the call, None while it lasts."""
        return None if self.end is None else self.end - self.start


@dataclass
class CallTotals:
    """Sums of calls. What grows with a call is three numbers.

    Parameters
    ----------
    meter : CallMeter, optional
        Costs the calls. Without it tokens alone are added.
    """

    meter: CallMeter | None
    traces: int = 0
    _groups: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    _stages: dict[str, Sums] = field(default_factory=dict)
    _missing: dict[str, dict[str, Any]] = field(default_factory=dict)
    _flops: list[int] = field(default_factory=list)
    _times: list[tuple[float, float]] = field(default_factory=list)
    _prices: list[float] = field(default_factory=list)
    _dearest: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)

    def add(self, seen: Seen, call: Call, cost: CallCost | None) -> None:
        """Add a call; one of another model has no cost."""
        group = self._group(seen)
        group.update(
            calls=1,
            prompt_tokens=call.prompt_tokens,
            cached_tokens=call.cached_tokens or 0,
            output_tokens=call.output_tokens,
            pictures=len(call.pictures),
        )
        if cost is None:
            return
        group.update(counted=1, flops=cost.flops[TOTAL], flops_causal=cost.flops_causal[TOTAL])
        for name, sums in cost.stages.items():
            whole = self._stages.setdefault(name, Sums())
            whole.needed += sums.needed
            whole.executed += sums.executed
        self._flops.append(cost.flops[TOTAL])
        if seen.end is not None:
            self._times.append((seen.start, seen.end))
        if cost.price is not None:
            self._prices.append(cost.price)
        for gap in cost.gaps:
            self._miss(gap)

    def miss(self, seen: Seen, gap: UncountedError) -> None:
        """Add a call that cannot be counted."""
        self._group(seen).update(calls=1)
        self._miss(gap)

    def add_trace(self, trace_id: str, name: str, costs: list[CallCost]) -> None:
        """Add a trace, whose calls are added already."""
        self.traces += 1
        flops = sum(cost.flops[TOTAL] for cost in costs)
        if not flops:
            return
        entry: dict[str, Any] = {"trace_id": trace_id, "name": name, "calls": len(costs), "flops": flops}
        prices = [cost.price for cost in costs if cost.price is not None]
        if prices:
            entry["cost"] = math.fsum(prices)
        # Of equally dear traces the first stays.
        heapq.heappush(self._dearest, (flops, -self.traces, entry))
        if len(self._dearest) > _DEAREST:
            heapq.heappop(self._dearest)

    def document(self) -> dict[str, Any]:
        """Return all sums as plain data."""
        groups = [
            {"model": model, "span": span, **{name: values[name] for name in _OF_GROUPS}}
            for (model, span), values in sorted(
                self._groups.items(), key=lambda item: (-item[1]["flops"], -item[1]["calls"], item[0])
            )
        ]
        document: dict[str, Any] = {
            "traces": self.traces,
            **{name: sum(group[name] for group in groups) for name in _OF_GROUPS if "flops" not in name},
            "groups": groups,
            "missing": [{"kind": kind, **found} for kind, found in self._missing.items()],
        }
        if self.meter is None:
            return document
        config = self.meter.config
        _, cache_item = item_sizes(config.dtype, config.kv_cache_dtype)
        order = [stage.name for stage in self.meter.model.family.stages if stage.name in self._stages]
        stages = {name: self._stages[name].quantities(cache_item) for name in order}
        whole = Counter[str]()
        for values in stages.values():
            whole.update(values)
        document |= {"model": self.meter.model.name, "dtype": config.dtype, "stages": stages, "total": dict(whole)}
        if self._flops:
            document["flops_per_call"] = quantiles(sorted(self._flops), whole["flops"])
            document["dearest"] = [entry for _, _, entry in sorted(self._dearest, reverse=True)]
        return document | self._utilization(whole)

    def _utilization(self, whole: Mapping[str, int]) -> dict[str, Any]:
        """Return what the devices reached in the time with calls, and the price."""
        seconds = busy_seconds(self._times)
        found: dict[str, Any] = {}
        if seconds:
            found["seconds_with_calls"] = seconds
            found["mean_concurrency"] = math.fsum(end - start for start, end in self._times) / seconds
        peak, devices = (None, 1) if self.meter is None else (self.meter.peak, self.meter.serving.devices)
        # Work without times would be divided by the time of the rest.
        if peak is not None and seconds and len(self._times) == len(self._flops):
            rate = seconds * devices * peak.flops_per_second
            found |= {"peak": peak.to_dict(), "devices": devices}
            found |= {"mfu": whole["flops"] / rate, "mfu_causal": whole["flops_causal"] / rate}
        if self._prices:
            found["cost"] = math.fsum(self._prices)
        return found

    def _group(self, seen: Seen) -> Counter[str]:
        return self._groups.setdefault((seen.model or "", seen.span), Counter())

    def _miss(self, gap: UncountedError) -> None:
        found = self._missing.setdefault(gap.kind, {"calls": 0, "first": str(gap), "remedy": gap.remedy})
        found["calls"] += 1


_OF_GROUPS = (
    *("calls", "counted", "prompt_tokens", "cached_tokens", "output_tokens", "pictures"),
    *("flops", "flops_causal"),
)


def busy_seconds(times: list[tuple[float, float]]) -> float:
    """Return the seconds in which one of some intervals lasted, or several."""
    seconds, until = 0.0, -math.inf
    for start, end in sorted(times):
        if end > until:
            seconds += end - max(start, until)
            until = end
    return seconds
