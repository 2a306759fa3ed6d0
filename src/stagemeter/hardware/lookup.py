"""From what a device is called to what it can do. There is no default: a wrong peak is worse than none."""

from __future__ import annotations

import difflib
import re
from functools import cache

from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.devices import Device, known_devices
from stagemeter.hardware.roofline import Peak

#: What stands in place of a device's name for a peak that is measured on this machine.
MEASURED = "measured"
#: What a peak is called of which only the numbers are known.
GIVEN = "given peak"
#: Words that say who makes a device, or for whom, but not which it is.
_NO_NAMES = frozenset({"nvidia", "tesla", "geforce", "amd", "instinct", "google", "intel", "habana"})
_SIMILAR = 3
#: TFLOP/s or GB/s beyond which no device is, by far.
_FASTEST = 1e9
_KNOWN = "`stagemeter devices` lists those that are known"


def find_device(name: str, way_out: str = "") -> Device:
    """Find a device by its name, an alias, or the name that a driver reports.

    Case, spaces, dashes and underscores make no difference, nor do names of vendors and product lines.

    Parameters
    ----------
    name : str
        Such as ``A100-SXM-80GB``, ``h100 pcie`` or ``NVIDIA H100 80GB HBM3``.
    way_out : str
        What else can be done about a device that is not known.

    Raises
    ------
    StagemeterError
        If no device is called so, or if several could be meant; the message names them.

    Examples
    --------
    >>> find_device("NVIDIA A100-SXM4-80GB").name
    'A100-SXM-80GB'
    """
    device = _by_key().get(_key(name))
    if device is not None:
        return device
    candidates = _candidates(name)
    if len(candidates) > 1:
        raise StagemeterError(f"device {name!r} could be any of {', '.join(candidates)}: name one of them")
    near = candidates or _similar(name)
    hint = f", did you mean {' or '.join(near)}?" if near else ";"
    raise StagemeterError(f"unknown device {name!r}{hint} {'; '.join(filter(None, (_KNOWN, way_out)))}")


def device_peak(device: Device, dtype: str) -> Peak:
    """Peak of a device for a data type.

    Parameters
    ----------
    device : Device
        See `find_device`.
    dtype : str
        Such as ``bfloat16``.

    Raises
    ------
    StagemeterError
        If the device has no rate for the data type; the message names those that it has.
    """
    if dtype not in device.peak_tflops:
        known = ", ".join(device.peak_tflops)
        raise StagemeterError(
            f"{device.name} has no {dtype} rate, only {known}: choose a --dtype of these, "
            "or give --peak-tflops X --peak-gbps Y"
        )
    return Peak(
        name=device.name,
        dtype=dtype,
        flops_per_second=device.peak_tflops[dtype] * 1e12,
        bytes_per_second=device.bandwidth_gbps * 1e9,
        source=device.source,
        memory_bytes=device.memory_bytes,
    )


def given_peak(dtype: str, tflops: float, gbps: float | None) -> Peak:
    """Peak of which only the numbers are known.

    Parameters
    ----------
    dtype : str
        Data type that `tflops` is of.
    tflops : float
        Dense TFLOP/s.
    gbps : float or None
        Memory bandwidth in GB/s; None where it is not known.

    Raises
    ------
    StagemeterError
        If a number is not positive and finite.
    """
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


def _require_positive(option: str, value: float) -> None:
    if not 0 < value < _FASTEST:
        raise StagemeterError(f"{option} {value:g} is no rate: give a positive number below {_FASTEST:g}")


def _words(name: str) -> list[str]:
    words = re.split(r"[\s_-]+", name.strip().lower())
    return [word for word in words if word and word not in _NO_NAMES]


def _key(name: str) -> str:
    return "".join(_words(name))


def _candidates(name: str) -> list[str]:
    """Devices of which one name has all the words of this one, such as all A100 for ``A100``."""
    words = set(_words(name))
    if not words:
        return []
    return [device.name for device in known_devices() if any(words <= set(_words(known)) for known in device.names)]


def _similar(name: str) -> list[str]:
    keys = difflib.get_close_matches(_key(name), _by_key(), n=_SIMILAR)
    return list(dict.fromkeys(_by_key()[key].name for key in keys))


@cache
def _by_key() -> dict[str, Device]:
    # Two names of one device may have the same key; those of two devices never do, which a test holds.
    return {_key(name): device for device in known_devices() for name in device.names}
