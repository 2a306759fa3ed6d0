"""The table of accelerators in ``devices.json``: what each can do at most, by its datasheet.

Three rules hold, since vendors print whatever is largest:

- Rates are dense. A headline number with 2:4 sparsity is twice what dense work can reach. It stands apart, in
  `Device.sparse_tflops`, so that a test can compare the two.
- Rates accumulate in float32, as matrix products of torch do. GeForce cards are twice as fast when they accumulate in
  float16, which their headline numbers assume.
- ``float32`` means float32 throughout, not TF32: torch does not use TF32 unless asked.

The table leaves out a data type that a device has no fast path for, or that its vendor prints no number for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

#: Vendors write the size of a device's memory in GB and mean GiB: an A100 of "80GB" reports 81,920 MiB.
_BYTES_PER_GB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator as torch sees one: a GPU, a die of an MI250X, a TPU chip.

    Attributes
    ----------
    name : str
        Name in reports, such as ``A100-SXM-80GB``.
    peak_tflops : mapping
        Dense TFLOP/s by data type, accumulated in float32; see the module.
    bandwidth_gbps : float
        Memory bandwidth in GB/s, 10^9 bytes each.
    memory_gb : int
        Memory in GB as the vendor counts them, see `memory_bytes`.
    source, address : str, str or None
        The document with the numbers, how they were converted, and its web address; None where none is published.
    entered : str
        Date on which the numbers were taken from it.
    sparse_tflops : mapping
        TFLOP/s with 2:4 sparsity by data type, where the source prints them. They enter no result.
    reported_names : tuple of str
        Names that drivers report, such as ``NVIDIA A100-SXM4-80GB``.
    aliases : tuple of str
        Names that people use, unless they could mean another device; `note` says why one means this device.
    """

    name: str
    vendor: str
    peak_tflops: Mapping[str, float]
    bandwidth_gbps: float
    memory_gb: int
    source: str
    address: str | None
    entered: str
    sparse_tflops: Mapping[str, float] = field(default_factory=dict)
    reported_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    note: str = ""

    @property
    def memory_bytes(self) -> int:
        """Size of the memory in bytes; a little more than a driver leaves to programs."""
        return self.memory_gb * _BYTES_PER_GB

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the device, the one in reports first."""
        return (self.name, *self.aliases, *self.reported_names)


@cache
def known_devices() -> tuple[Device, ...]:
    """Return all devices, by vendor and age."""
    entries: list[dict[str, Any]] = json.loads((resources.files(__package__) / "devices.json").read_text("utf-8"))
    return tuple(map(_device, entries))


def _device(entry: Mapping[str, Any]) -> Device:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Device(**fields)
