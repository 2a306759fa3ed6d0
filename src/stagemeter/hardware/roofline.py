"""The roofline: the least time that work can take on a device, and whether compute or memory sets it.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from stagemeter.core.bound_types import BoundBy, PeakRates


@dataclass(frozen=True, slots=True)
class Peak:
    """The peak rates of a device.

    Attributes
    ----------
    name : str
        The device, such as ``A100-SXM-80GB``, or ``given peak`` where only numbers were given.
    dtype : str
        Data type of `flops_per_second`, which are dense.
    bytes_per_second : float or None
        Memory bandwidth; None if unknown, and then there is no memory bound.
    source : str
        Source of the numbers: a datasheet, an option, a measurement.
    """

    name: str
    dtype: str
    flops_per_second: float
    bytes_per_second: float | None
    source: str
    memory_bytes: int | None = None

    def to_dict(self) -> PeakRates:
        """Return the rates in TFLOP/s and GB/s."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "tflops": self.flops_per_second / 1e12,
            "gbps": None if self.bytes_per_second is None else self.bytes_per_second / 1e9,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Peak:
        """Undo `to_dict`."""
        gbps = values["gbps"]
        return cls(
            name=values["name"],
            dtype=values["dtype"],
            flops_per_second=values["tflops"] * 1e12,
            bytes_per_second=None if gbps is None else gbps * 1e9,
            source=values["source"],
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time that some work can take: milliseconds at the peak of compute, and of memory (None if unknown)."""

    compute_ms: float
    memory_ms: float | None

    @property
    def ms(self) -> float:
        """The lower bound in milliseconds."""
        return self.compute_ms if self.memory_ms is None else _maximum(self.compute_ms, self.memory_ms)

    @property
    def by(self) -> str:
        """The resource that sets the bound: ``compute``, ``memory``, or ``unknown`` without a bandwidth."""
        if self.memory_ms is None:
            return "unknown"
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


def _maximum(one: Any, other: Any) -> Any:
    """Return the larger of two numbers, or of each pair of two arrays."""
    if hasattr(one, "__array__") or hasattr(other, "__array__"):
        import numpy as np

        return np.maximum(one, other)
    return max(one, other)


def bound(flops: float, moved_bytes: float, peak: Peak) -> Bound:
    """Return the least time that some work takes; arrays of numbers, also in `peak`, give arrays."""
    return Bound(
        compute_ms=1e3 * flops / peak.flops_per_second,
        memory_ms=None if peak.bytes_per_second is None else 1e3 * moved_bytes / peak.bytes_per_second,
    )


def bound_by(least: Sequence[Bound], most: Sequence[Bound]) -> BoundBy:
    """Return the resource that sets most of the least time of some work, or ``unknown`` without a bandwidth.

    The parts run one after another. `least` bounds each with the fewest bytes that it can move, `most` with the most;
    the result is ``compute or memory`` where they differ.
    """
    return cast("BoundBy", " or ".join(sorted({_sets_most(least), _sets_most(most)})))


def _sets_most(bounds: Sequence[Bound]) -> str:
    times: dict[str, float] = {}
    for part in bounds:
        times[part.by] = times.get(part.by, 0.0) + part.ms
    return max(sorted(times), key=lambda by: times[by])
