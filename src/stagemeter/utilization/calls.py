"""Costs of the calls of a served model: FLOPs by stage, shares of MFU, and prices. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stagemeter.analysis.calls import Call, UncountedError
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.request_costs import RequestCosts, Sums
from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.requests import OF_PAGES, OF_REQUESTS, refuse_adapter, refuse_settings
from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, TOTAL
from stagemeter.core.units import percentage, with_unit
from stagemeter.hardware.lookup import asked_peak
from stagemeter.hardware.roofline import Peak
from stagemeter.models.files import names_of
from stagemeter.models.lookup import describe_model, require_closed_forms
from stagemeter.models.served_name import spellings

#: Attributes of a span and tags of a trace begin like this; a tag of this name alone is for people.
NAME = "stagemeter"
FLOPS, CAUSAL, SHARE, MISSING = f"{NAME}.flops", f"{NAME}.flops_causal", f"{NAME}.mfu_share", f"{NAME}.missing"
#: The cost of a trace in the currency of the price.
COST = f"{NAME}.cost"
_HOUR = 3600


@dataclass(frozen=True)
class Serving:
    """A server of a model: its names for it, its devices and their price.

    Attributes
    ----------
    served_as : str or collection of str, optional
        Names under which it serves the model. By default, the model's name, or its id on the Hub, or the last part of
        either.
    device, peak_tflops
        Device, or its dense peak in TFLOP/s. Without one there is no MFU.
    devices : int
        Devices that serve a call together.
    price_per_hour : float, optional
        Price of an hour of one device. Without it there is no cost.
    concurrency : float, optional
        Calls that share the devices at a time, on average. Default: one.

    Raises
    ------
    StagemeterError
        If a number cannot be used.
    """

    served_as: str | Collection[str] | None = None
    device: str | None = None
    peak_tflops: float | None = None
    devices: int = 1
    price_per_hour: float | None = None
    concurrency: float | None = None

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise StagemeterError(f"devices: {self.devices} cannot serve a model. Give 1 or more")
        if self.price_per_hour is None and self.concurrency is not None:
            raise StagemeterError(
                f"concurrency: {self.concurrency:g} divides a price, and there is none. Give price_per_hour"
            )
        for name, value, least in (("price_per_hour", self.price_per_hour, 0), ("concurrency", self.concurrency, 1)):
            if value is not None and not (math.isfinite(value) and value >= least):
                raise StagemeterError(f"{name}: {value:g} cannot be used. Give a number, {least} or more")

    def names(self, model: str) -> set[str]:
        """Return the spellings of its names for a model."""
        given = (self.served_as,) if isinstance(self.served_as, str) else self.served_as or names_of(model)
        return {known for name in given for known in spellings(name)}

    def price(self, seconds: float) -> float | None:
        """Return the price of a call of some seconds: that of the devices, divided by the concurrency.

        By Little's law, the seconds of all calls add up to the concurrency times the hours of the server, so prices
        add up to what the server costs.
        """
        if self.price_per_hour is None:
            return None
        return self.price_per_hour * self.devices * seconds / _HOUR / (self.concurrency or 1)


@dataclass(frozen=True)
class CallCost:
    """The cost of a call: sums of each stage, and, where seconds are known, its share of MFU and its price.

    `gaps` are what is missing though the call is counted.
    """

    stages: Mapping[str, Sums]
    mfu_share: float | None = None
    mfu_share_causal: float | None = None
    price: float | None = None
    gaps: tuple[UncountedError, ...] = ()

    @cached_property
    def flops(self) -> dict[str, int]:
        """FLOPs by stage and in total."""
        return _with_total({name: sums.needed.flops for name, sums in self.stages.items()})

    @cached_property
    def flops_causal(self) -> dict[str, int]:
        """FLOPs of visible pairs by stage and in total."""
        return _with_total({name: sums.needed.flops_causal for name, sums in self.stages.items()})

    @property
    def price_parts(self) -> tuple[float, float] | None:
        """The price of all stages up to the first token, and that of decode: by their FLOPs."""
        if self.price is None:
            return None
        decode = self.price * self.flops[DECODE] / self.flops[TOTAL]
        return self.price - decode, decode

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a span."""
        found: dict[str, Any] = {}
        for name, flops in ((FLOPS, self.flops), (CAUSAL, self.flops_causal)):
            found |= {f"{name}.{stage}": value for stage, value in flops.items()}
        if self.mfu_share is not None:
            found |= {SHARE: self.mfu_share, f"{SHARE}_causal": self.mfu_share_causal}
        if self.gaps:
            found |= gap_attributes(*self.gaps)
        return found


_UNKNOWN_SERVER = Serving()


class CallMeter:
    """Costs of the calls of one model.

    Parameters
    ----------
    config : AnalysisConfig
        The model, its data types, and limits of pages.
    serving : Serving
        The server.

    Raises
    ------
    StagemeterError
        If there is no such model, it has no closed forms, or the device is unknown.
    """

    def __init__(self, config: AnalysisConfig, serving: Serving = _UNKNOWN_SERVER) -> None:
        refuse_adapter(config, "a call")
        refuse_settings(config, (*OF_REQUESTS, *OF_PAGES))
        self.model = describe_model(config.model, config.trust_remote_code)
        require_closed_forms(self.model)
        self.config, self.serving = config, serving
        self.peak = asked_peak(config.dtype, serving.device, serving.peak_tflops)
        self._known = serving.names(self.model.name)
        self._costs = RequestCosts(self.model, config, BadLines(Path("calls"), skip=False))

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on how the calls so far are counted, such as the limits of their pages."""
        return tuple(self._costs.notes)

    def serves(self, name: str | None) -> bool:
        """Tell whether a call asks this model. A call that names no model does."""
        return name is None or not self._known.isdisjoint(spellings(name))

    def cost(self, call: Call, seconds: float | None = None) -> CallCost:
        """Return the cost of a call that took some seconds, or raise `UncountedError`.

        The share of MFU is the call's FLOPs over seconds x devices x peak. The seconds of a call include waiting, and
        its devices work for other calls besides: shares of calls at the same time add up to the MFU of the devices.
        """
        try:
            stages = self._costs.one(
                call.pictures, call.prompt_tokens, call.cached_tokens or 0, call.output_tokens, call.image_tokens
            )
        except StagemeterError as error:
            setting, _, text = str(error).partition(": ")
            reason, _, remedy = text.rpartition(". ")
            raise UncountedError(setting.partition(" ")[0], reason, remedy) from None
        gaps = () if call.cached_tokens is not None else (_UNKNOWN_CACHE,)
        cost = CallCost(stages, gaps=gaps)
        if seconds is None or seconds <= 0:
            return cost
        cost = replace(cost, price=self.serving.price(seconds))
        if self.peak is not None:
            possible = seconds * self.serving.devices * self.peak.flops_per_second
            share, causal = cost.flops[TOTAL] / possible, cost.flops_causal[TOTAL] / possible
            if causal > 1:
                gaps = (*gaps, _too_fast(causal, self.peak))
            cost = replace(cost, mfu_share=share, mfu_share_causal=causal, gaps=gaps)
        return cost


_UNKNOWN_CACHE = UncountedError(
    "cached tokens",
    "the usage has none, and the whole prompt is counted as computed",
    "vLLM reports them with --enable-prompt-tokens-details",
)


def _too_fast(share: float, peak: Peak) -> UncountedError:
    return UncountedError(
        "device",
        f"the call took 1/{share:.3g} of the time that its FLOPs take at the peak of {peak.name}",
        "Check the device, the number of devices and the model",
    )


def gap_attributes(*gaps: UncountedError) -> dict[str, Any]:
    """Return the attribute of a span that names what is missing."""
    return {MISSING: [str(gap) for gap in gaps]}


def trace_tags(spans: Sequence[Mapping[str, Any]], prices: Sequence[float] = ()) -> dict[str, str]:
    """Return the tags of a trace from the attributes of its counted spans, and from those that name what is missing."""
    flops = Counter[str]()
    for span in spans:
        flops.update({name.removeprefix(f"{FLOPS}."): n for name, n in span.items() if name.startswith(f"{FLOPS}.")})
    missing = sorted({reason for span in spans for reason in span.get(MISSING, ())})
    tags = {}
    if flops:
        counted = sum(f"{FLOPS}.{TOTAL}" in span for span in spans)
        shares = (f"{name} {percentage(value, flops[TOTAL])}" for name, value in flops.items() if name != TOTAL)
        tags[NAME] = f"{with_unit(flops[TOTAL], 'FLOPs')}, {counted} of {len(spans)} calls: {', '.join(shares)}"
        tags[FLOPS] = str(flops[TOTAL])
    if prices:
        tags[COST] = f"{math.fsum(prices):.9g}"
    if missing:
        tags[MISSING] = "; ".join(missing)
    return tags


def outermost(
    parents: Mapping[str, str | None], counted: Collection[str], missing: Collection[str] = ()
) -> tuple[set[str], set[str]]:
    """Return the counted spans that lie in no other one, and the missing ones that lie in none and hold none.

    `parents` are ids of spans with those of their parents. MLflow sums token usage and cost of the former
    (``_aggregate_from_nodes`` in mlflow/tracing/utils/__init__.py, version 3.17).
    """

    def above(span: str) -> list[str]:
        found: list[str] = []
        parent = parents.get(span)
        while parent is not None and parent not in found:
            found.append(parent)
            parent = parents.get(parent)
        return found

    around = {span: above(span) for span in (*counted, *missing)}
    holding = {parent for span in counted for parent in around[span]}
    free = {span for span, ancestors in around.items() if not any(parent in counted for parent in ancestors)}
    return {span for span in counted if span in free}, {span for span in missing if span in free - holding}


def _with_total(stages: dict[str, int]) -> dict[str, int]:
    return {**stages, TOTAL: sum(stages.values())}
