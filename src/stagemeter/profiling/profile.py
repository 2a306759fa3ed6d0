"""A profile: the times of the stages of a workload, from any source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from stagemeter.profiling.lengths import RequestLengths

#: A century. A longer time has a wrong unit or comes from a damaged file.
LONGEST_MS = 100 * 365.25 * 86_400e3
#: Source of times that a session of transformers took.
SESSION = "session"


@dataclass(frozen=True)
class Profile:
    """Times of the stages of one workload.

    Attributes
    ----------
    times_ms : mapping
        Own milliseconds by stage, one per repeat, without stages nested inside. ``decode`` is one step, the mean over
        a request; ``decode_total`` all steps. ``vision`` and ``forward`` are stages that were timed as one.
    source, clock : str
        Such as ``session`` or ``torch trace of trace.json``, and ``CUDA events`` or ``monotonic clock``.
    request_ms : tuple of float
        Wall time of the whole request, one per repeat; empty if it is not known.
    measured : mapping
        Fields of the workload that the source shows to differ from the request, such as ``new_tokens``.
    metrics : mapping
        Further numbers by metric name.
    hardware : mapping
        ``device`` and other properties.
    lengths : RequestLengths or None
        Lengths of the requests that a serving engine's times are means over.
    served : mapping or None
        The work of these requests by their log, see `stagemeter.utilization.served.ServedRequests`.
    served_model : str
        The model's name at the serving engine, empty if it has none.
    """

    times_ms: Mapping[str, Sequence[float]]
    source: str
    clock: str
    request_ms: Sequence[float] = ()
    measured: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    lengths: RequestLengths | None = None
    served: Mapping[str, Any] | None = None
    served_model: str = ""

    @property
    def medians(self) -> dict[str, float]:
        """Median milliseconds by stage."""
        return {stage: median(times) for stage, times in self.times_ms.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data for JSON."""
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()},
            "times_ms": {stage: list(times) for stage, times in self.times_ms.items()},
            "lengths": None if self.lengths is None else self.lengths.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and deciles of some repeats."""

    median: float
    p10: float
    p90: float


def spread(times: Sequence[float]) -> Spread:
    """Return the median, 10th and 90th percentile of one or more numbers, interpolated between neighbours."""
    if len(times) == 1:
        return Spread(times[0], times[0], times[0])
    deciles = quantiles(times, n=10, method="inclusive")
    return Spread(median(times), deciles[0], deciles[-1])
