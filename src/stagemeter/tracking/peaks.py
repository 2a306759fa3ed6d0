"""The peak rates for a profile: looked up, given, or measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from mlflow.entities import Run

from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.lookup import GIVEN, MEASURED, asked_peak, device_peak, find_device
from stagemeter.hardware.roofline import Peak
from stagemeter.tracking.labels import HARDWARE
from stagemeter.tracking.runs import held_json, hold_json

#: The tag that names the file with this machine's peak.
_MEASURED_PEAK, _MEASURED_PEAK_FILE = "stagemeter.measured_peak", "measured_peak.json"
_DEVICE, _CORES = f"{HARDWARE}device", f"{HARDWARE}cores"
_WAY_OUT = "Give --device measured for this machine, or --peak-tflops X --peak-gbps Y"


@dataclass(frozen=True, slots=True)
class GivenHardware:
    """Hardware of a run as the user gives it.

    Attributes
    ----------
    device : str or None
        Device to look the peak up for, or ``measured`` to measure this machine's. Default: the run's own.
    peak_tflops, peak_gbps : float or None
        The peak itself, in place of a device: dense TFLOP/s and GB/s.
    devices : int or None
        Devices that did the work. Default: those that the run names, or one.
    """

    device: str | None = None
    peak_tflops: float | None = None
    peak_gbps: float | None = None
    devices: int | None = None


def find_peak(profile: Run, given: GivenHardware, dtype: str) -> Peak:
    """Choose the peak rates for a profile in a data type. Refuse options that contradict each other."""
    device = given.device
    if given.peak_tflops is not None or given.peak_gbps is not None:
        peak = asked_peak(dtype, device, given.peak_tflops, given.peak_gbps)
        assert peak is not None
        return peak
    if device == MEASURED:
        return _measured_peak(profile, dtype)
    ran_on = profile.data.tags.get(_DEVICE)
    if device is None and ran_on is None:
        raise StagemeterError(
            f"run {profile.info.run_id}: does not say what it ran on. Give --device NAME (`stagemeter devices` lists "
            "them), --device measured, or --peak-tflops X --peak-gbps Y"
        )
    try:
        return device_peak(find_device(device or str(ran_on)), dtype)
    except StagemeterError as error:
        kept = _kept_peak(profile) if device is None else None
        if kept is not None:
            return kept
        if device is not None:
            raise
        raise StagemeterError(
            f"run {profile.info.run_id}: it ran on {ran_on}, whose peak is not known ({error}). {_WAY_OUT}"
        ) from None


def peak_flags(profile: Run, peak: Peak) -> list[str]:
    """Flag a peak of another device than the profile names."""
    ran_on = profile.data.tags.get(_DEVICE)
    if ran_on is None and peak.source.startswith("measured"):
        return [f"the run does not say what it ran on, and the peak is that of this machine, {peak.name}"]
    if ran_on is None or peak.name in (ran_on, GIVEN):
        return []
    if same_device(ran_on, peak.name):
        return []
    return [f"the run names {ran_on}, and the peak is that of {peak.name}"]


def _measured_peak(profile: Run, dtype: str) -> Peak:
    """Measure this machine once for each profile, so that the same pairing gives the same numbers."""
    kept = _kept_peak(profile)
    if kept is not None:
        return kept
    # Exactly as it is read back the next time.
    peak = Peak.from_dict(_measure(_measurable(profile), dtype).to_dict())
    hold_json(profile.info.run_id, _MEASURED_PEAK, _MEASURED_PEAK_FILE, peak.to_dict())
    return peak


def _kept_peak(profile: Run) -> Peak | None:
    """Return the peak that was measured for a profile before."""
    try:
        return Peak.from_dict(held_json(profile, _MEASURED_PEAK)) if _MEASURED_PEAK in profile.data.tags else None
    except (ValueError, LookupError, TypeError):
        raise StagemeterError(
            f"run {profile.info.run_id}: its tag {_MEASURED_PEAK} is damaged. Delete it to measure again"
        ) from None


@cache
def _measure(target: str, dtype: str) -> Peak:
    """Measure a device of this machine, once for all profiles of this process."""
    from stagemeter.hardware.measure import measure_peak

    return measure_peak(target, dtype).peak


def _measurable(profile: Run) -> str:
    """Choose the device of this machine that a profile ran on, or raise StagemeterError."""
    import torch

    from stagemeter.hardware.machine import device_name, usable_cores
    from stagemeter.profiling.target import AUTO, choose_device

    ran_on = profile.data.tags.get(_DEVICE)
    if ran_on is None:
        return choose_device(AUTO)
    places = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names = {place: device_name(torch.device(place)) for place in places}
    cores = profile.data.tags.get(_CORES)
    for place, name in names.items():
        # Processors with different numbers of cores share a name.
        if same_device(name, ran_on) and (place != "cpu" or cores in (None, str(usable_cores()))):
            return place
    there = ran_on if cores is None else f"{ran_on} of {cores} cores"
    here = " or ".join([f"{names['cpu']} of {usable_cores()} cores", *list(names.values())[1:]])
    raise StagemeterError(
        f"--device measured: would measure {here}, and run {profile.info.run_id} ran on {there}. Pair it there, or "
        "give --device NAME or --peak-tflops X --peak-gbps Y"
    )


def same_device(name: str, other: str) -> bool:
    """Tell whether two names mean one device."""
    return _known_name(name) == _known_name(other)


def _known_name(name: str) -> str:
    try:
        return find_device(name).name
    except StagemeterError:
        return name
