"""Lookup of devices and peaks by name. There is no default: a wrong peak is worse than none."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from functools import cache

from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.hardware.devices import Device, known_devices
from stagemeter.hardware.roofline import Peak

logger = logging.getLogger(__name__)

#: Stands in place of a device's name for a peak measured on this machine.
MEASURED = "measured"
#: Name of a peak given as numbers.
GIVEN = "given peak"
#: Vendors and product lines, which do not identify a device.
_NO_NAMES = frozenset({"nvidia", "tesla", "geforce", "amd", "instinct", "google", "intel", "habana"})
_SIMILAR = 3
#: Upper limit of TFLOP/s or GB/s, far beyond any device.
_FASTEST = 1e9
_KNOWN = "`stagemeter devices` lists those that are known"


def find_device(name: str, way_out: str = "") -> Device:
    """Return a device by its name, an alias, or the name that a driver reports, or raise StagemeterError.

    Case, spaces, dashes, underscores, vendors and product lines make no difference. `way_out` is advice for an unknown
    device.

    Examples
    --------
    >>> find_device("NVIDIA A100-SXM4-80GB").name
    'A100-SXM-80GB'
    """
    device, candidates = _by_key().get(_key(name)), _candidates(name)
    if device is not None:
        others = [other for other in candidates if other != device.name]
        if others and name not in device.names[:1] + device.reported_names:
            logger.warning("device: %s is treated as %s, not %s", name, device.name, " or ".join(others))
        return device
    if len(candidates) > 1:
        raise StagemeterError(f"device: {name!r} could be any of {', '.join(candidates)}. Name one of them")
    near = candidates or _similar(name)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise StagemeterError(f"device: {name!r} is unknown. {hint}{'; '.join(filter(None, (_KNOWN, way_out)))}")


def devices_with(words: Sequence[str]) -> tuple[Device, ...]:
    """Return the devices of which some name has all of some words, or raise StagemeterError; all without a word."""
    found = tuple(
        device
        for device in known_devices()
        if any(all(word.lower() in name.lower() for word in words) for name in device.names)
    )
    if not found:
        raise StagemeterError(f"words: no device has {' and '.join(words)}. `stagemeter devices` lists all")
    return found


def device_peak(device: Device, dtype: str) -> Peak:
    """Return the peak of a device for a data type, or raise StagemeterError with the data types that have a rate."""
    if dtype not in device.peak_tflops:
        known = ", ".join(device.peak_tflops)
        raise StagemeterError(f"device: {device.name} has no {dtype} rate, only {known}. Choose a dtype of these")
    return Peak(
        name=device.name,
        dtype=dtype,
        flops_per_second=device.peak_tflops[dtype] * 1e12,
        bytes_per_second=device.bandwidth_gbps * 1e9,
        source=device.source,
        memory_bytes=device.memory_bytes,
    )


def given_peak(dtype: str, tflops: float, gbps: float | None) -> Peak:
    """Return a peak from dense TFLOP/s and GB/s (None: unknown), or raise StagemeterError."""
    _require_positive("--peak-tflops", tflops)
    if gbps is not None:
        _require_positive("--peak-gbps", gbps)
    return Peak(
        name=GIVEN,
        dtype=dtype,
        flops_per_second=tflops * 1e12,
        bytes_per_second=None if gbps is None else gbps * 1e9,
        source="--peak-tflops as given" if gbps is None else "--peak-tflops and --peak-gbps as given",
    )


def asked_peak(dtype: str, device: str | None, tflops: float | None, gbps: float | None = None) -> Peak | None:
    """Return the peak of a device or of given numbers, None without either. Refuse both, and a bandwidth alone."""
    exclusive(device=device, peak_tflops=tflops)
    if tflops is not None:
        return given_peak(dtype, tflops, gbps)
    if gbps is not None:
        raise StagemeterError(f"--peak-gbps {gbps:g}: needs --peak-tflops beside it. Give both, or --device")
    return None if device is None else device_peak(find_device(device, "or give its peak"), dtype)


def _require_positive(option: str, value: float) -> None:
    if not 0 < value < _FASTEST:
        raise StagemeterError(f"{option}: {value:g} is not a rate. Give a positive number below {_FASTEST:g}")


def _words(name: str) -> list[str]:
    words = re.split(r"[\s_-]+", name.strip().lower())
    return [word for word in words if word and word not in _NO_NAMES]


def _key(name: str) -> str:
    return "".join(_words(name))


def _candidates(name: str) -> list[str]:
    """Return the devices with a name that has all words of this one, such as all A100 for ``A100``."""
    words = set(_words(name))
    if not words:
        return []
    return [device.name for device in known_devices() if any(words <= set(_words(known)) for known in device.names)]


def _similar(name: str) -> list[str]:
    keys = difflib.get_close_matches(_key(name), _by_key(), n=_SIMILAR)
    return list(dict.fromkeys(_by_key()[key].name for key in keys))


@cache
def _by_key() -> dict[str, Device]:
    # A test ensures that names of two devices never have the same key.
    return {_key(name): device for device in known_devices() for name in device.names}
