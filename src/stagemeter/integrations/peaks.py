"""The peak for the MFU of a training."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.hardware.lookup import MEASURED, device_peak, find_device, given_peak
from stagemeter.hardware.machine import device_name
from stagemeter.hardware.measure import measure_peak

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
_WAY_OUT = "device= names one of `stagemeter devices`, device='measured' measures this one, peak_tflops= gives a number"


def check_peak(device: str | None, tflops: float | None) -> None:
    """Refuse an invalid peak before a training begins."""
    exclusive(device=device, peak_tflops=tflops)
    if device is not None and device != MEASURED:
        find_device(device, _WAY_OUT)
    if tflops is not None:
        given_peak("bfloat16", tflops, None)


def training_peak(device: str | None, tflops: float | None, place: torch.device, dtype: str) -> float | None:
    """Return the peak FLOP/s of the device that a training runs on; None, with a warning, if it is unknown."""
    try:
        if tflops is not None:
            return given_peak(dtype, tflops, None).flops_per_second
        if device == MEASURED:
            return measure_peak(str(place), dtype).peak.flops_per_second
        return device_peak(find_device(device or device_name(place), _WAY_OUT), dtype).flops_per_second
    except StagemeterError as error:
        logger.warning("MFU is left out, times and counts are logged: %s (%s)", error, _WAY_OUT)
        return None
