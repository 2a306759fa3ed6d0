"""The base of the trainers' callbacks, which watch a training and never end it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn

from stagemeter.integrations.family_stages import stages_of
from stagemeter.integrations.peaks import check_peak, training_peak
from stagemeter.modules.throughput import Throughput

logger = logging.getLogger(__name__)
Event = TypeVar("Event", bound=Callable[..., None])


def careful(event: Event) -> Event:
    """Turn an error of a callback's event into one warning, after which the callback does nothing more."""

    @functools.wraps(event)
    def guarded(callback: Watcher, *args: Any, **kwargs: Any) -> None:
        if callback.given_up:
            return
        try:
            event(callback, *args, **kwargs)
        except Exception:
            # Any error: hours of training are worth more than these metrics.
            logger.warning("throughput is no longer measured, training goes on", exc_info=True)
            callback.given_up = True
            callback.leave()

    return cast(Event, guarded)


class Watcher:
    """The owner of a training's throughput meter."""

    def __init__(self, device: str | None = None, peak_tflops: float | None = None) -> None:
        check_peak(device, peak_tflops)
        self.given_up = False
        self.throughput: Throughput | None = None
        self._device, self._peak_tflops = device, peak_tflops

    def watch(self, modules: Iterable[nn.Module], place: torch.device, dtype: str, own: int, devices: int) -> None:
        """Start to watch modules whose products have the data type `dtype`.

        `own` devices of this process share its batches, of `devices` in all.
        """
        self.leave()
        peak = training_peak(self._device, self._peak_tflops, place, dtype)
        modules = list(modules)
        stages = {module: stages_of(module) for module in modules}
        self.throughput = Throughput(modules, place, None if peak is None else peak * own, devices // own, stages)
        self.throughput.attach()

    def leave(self) -> None:
        """Stop watching the modules."""
        if self.throughput is not None:
            self.throughput.detach()
            self.throughput = None
