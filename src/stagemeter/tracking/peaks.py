"""The peak that a profile is held against: looked up, given, or measured."""

from __future__ import annotations

import json

import mlflow
from mlflow.entities import Run

from stagemeter.errors import StagemeterError
from stagemeter.hardware.lookup import GIVEN, MEASURED, device_peak, find_device, given_peak
from stagemeter.hardware.roofline import Peak
from stagemeter.pairing import peak_dict, peak_of_dict
from stagemeter.tracking.runs import measured_workload

_MEASURED_PEAK = "stagemeter.measured_peak"
_DEVICE, _DEVICE_TYPE = "stagemeter.hardware.device", "stagemeter.hardware.device_type"


def find_peak(profile: Run, device: str | None, tflops: float | None, gbps: float | None) -> Peak:
    """Choose the peak that a profile is held against.

    Raises
    ------
    StagemeterError
        If there is none, or what was given contradicts itself.
    """
    dtype = measured_workload(profile).dtype
    if tflops is not None:
        if device is not None:
            raise StagemeterError(f"--device {device} and --peak-tflops {tflops:g} exclude each other: give one")
        return given_peak(dtype, tflops, gbps)
    if gbps is not None:
        raise StagemeterError(f"--peak-gbps {gbps:g} needs --peak-tflops beside it")
    if device == MEASURED:
        return _measured_peak(profile, dtype)
    ran_on = profile.data.tags.get(_DEVICE)
    if device is None and ran_on is None:
        raise StagemeterError(
            f"run {profile.info.run_id} does not say what it ran on: give --device NAME (`stagemeter devices` lists "
            "them), --device measured, or --peak-tflops X --peak-gbps Y"
        )
    try:
        return device_peak(find_device(device or str(ran_on)), dtype)
    except StagemeterError as error:
        named = "" if device is not None else f"run {profile.info.run_id} ran on {ran_on}: "
        raise StagemeterError(f"{named}{error}") from None


def peak_flags(profile: Run, peak: Peak) -> list[str]:
    """Say so where a profile is held against the peak of another device than the one that it names."""
    ran_on = profile.data.tags.get(_DEVICE)
    if ran_on is None and peak.source.startswith("measured"):
        return [f"the run does not say what it ran on, and the peak is that of this machine, {peak.name}"]
    if ran_on is None or peak.name in (ran_on, GIVEN):
        return []
    try:
        known = find_device(ran_on).name
    except StagemeterError:
        known = ran_on
    return [] if known == peak.name else [f"the run names {ran_on}, and the peak is that of {peak.name}"]


def _measured_peak(profile: Run, dtype: str) -> Peak:
    """Measure this machine, once for each profile: the same pairing twice gives the same numbers."""
    from stagemeter.hardware.machine import describe_machine
    from stagemeter.hardware.measure import measure_peak

    kept = profile.data.tags.get(_MEASURED_PEAK)
    if kept is not None:
        return peak_of_dict(json.loads(kept))
    tags = profile.data.tags
    target = tags.get(_DEVICE_TYPE, "cpu")
    ran_on, here = tags.get(_DEVICE), describe_machine(target)["device"]
    if ran_on is not None and ran_on != here:
        raise StagemeterError(
            f"--device measured would measure {here}, and run {profile.info.run_id} ran on {ran_on}: pair it there, or "
            "give --device NAME or --peak-tflops X --peak-gbps Y"
        )
    # As it is read back the next time, to the last digit.
    peak = peak_of_dict(peak_dict(measure_peak(target, dtype).peak))
    mlflow.MlflowClient().set_tag(profile.info.run_id, _MEASURED_PEAK, json.dumps(peak_dict(peak)))
    return peak
