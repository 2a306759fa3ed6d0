"""The energy of GPUs, by the page of NVIDIA's DCGM exporter.

Names and units are those of dcgm-exporter, ``etc/default-counters.csv``: ``DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION``, a
counter in mJ, and ``DCGM_FI_DEV_POWER_USAGE``, a gauge in W. The labels ``UUID`` and ``Hostname`` name a GPU. Parts of
a GPU (MIG) repeat its values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from stagemeter.core.addresses import shown_address
from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers.engines.address import fetch
from stagemeter.profiling.readers.prometheus import RestartedError, samples

_PREFIX = "DCGM_FI_"
_ENERGY, _POWER = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_POWER_USAGE"
_GPU = ("Hostname", "UUID", "gpu")


def is_power_page(text: str) -> bool:
    """Return whether a page is of a DCGM exporter."""
    return any(line.startswith(_PREFIX) for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy over some seconds."""

    joules: float
    seconds: float


class Meter(Protocol):
    """Something that measures the energy of GPUs."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""

    def read(self) -> Energy:
        """Return the energy since the last reading, or raise StagemeterError if it is not known."""


def energy_of_power(before: Mapping[str, float], now: Mapping[str, float], seconds: float) -> Energy:
    """Return the energy of some GPUs by their power at both ends, in W."""
    return Energy(sum(before[gpu] + now[gpu] for gpu in before) / 2 * seconds, seconds)


class PowerMeter:
    """The GPUs of a page of a DCGM exporter, from its first page on."""

    def __init__(self, url: str, text: str) -> None:
        self.name, self._url, self._at = shown_address(url), url, time.monotonic()
        self._values = self._read(text)

    @property
    def gpus(self) -> int:
        """Number of GPUs on the page."""
        return len(next(iter(self._values.values())))

    def read(self) -> Energy:
        """Return the energy since the last reading.

        It is that of the counter, else the mean of the power at both ends over the time. Raise StagemeterError if
        there is no page, and RestartedError if the counter fell or GPUs came or went.
        """
        at = time.monotonic()
        values, before = self._read(fetch(self._url)), self._values
        seconds = at - self._at
        metric = _ENERGY if _ENERGY in before and _ENERGY in values else _POWER
        was, now = before.get(metric, {}), values.get(metric, {})
        self._values, self._at = values, at
        if was.keys() != now.keys():
            raise RestartedError(f"{self.name}: GPUs came or went. Scrape again")
        if metric == _POWER:
            return energy_of_power(was, now, seconds)
        if any(now[gpu] < was[gpu] for gpu in was):
            raise RestartedError(f"{self.name}: {_ENERGY} went down. Scrape again")
        return Energy(sum(now[gpu] - was[gpu] for gpu in was) / 1e3, seconds)

    def _read(self, text: str) -> Mapping[str, Mapping[str, float]]:
        values: dict[str, dict[str, float]] = {}
        for sample in samples(self.name, text):
            # The parser of the format names counters so.
            name = sample.name.removesuffix("_total")
            if name in (_ENERGY, _POWER) and sample.value >= 0:
                gpu = " ".join(sample.labels.get(label, "") for label in _GPU)
                values.setdefault(name, {})[gpu] = sample.value
        if not values:
            raise StagemeterError(f"{self.name}: has neither {_ENERGY} nor {_POWER}. Let the exporter give one")
        return values
