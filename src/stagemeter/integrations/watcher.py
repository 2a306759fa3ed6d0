"""What callbacks of trainers share: one that watches a training, and never ends it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn

from stagemeter.integrations.peaks import check_peak, training_peak
from stagemeter.modules.throughput import Throughput

logger = logging.getLogger(__name__)
Event = TypeVar("Event", bound=Callable[..., None])


def careful(event: Event) -> Event:
    """Turn errors of a callback's event into one warning, after which the callback does nothing more.

    What is measured must never end what is trained.
    """

    @functools.wraps(event)
    def guarded(callback: Watcher, *args: Any, **kwargs: Any) -> None:
        if callback.given_up:
            return
        try:
            event(callback, *args, **kwargs)
        except Exception:
            # Whatever it was: hours of training are worth more than its figures.
            logger.warning("throughput is no longer measured, training goes on", exc_info=True)
            callback.given_up = True
            callback.leave()

    return cast(Event, guarded)


class Watcher:
    """Holds the throughput of a training, and lets go of it.

    Parameters
    ----------
    device : str or None
        What the training runs on, one of `stagemeter devices`, or ``measured``; None: what the driver says.
    peak_tflops : float or None
        Peak of one device in TFLOP/s, in place of that.

    Raises
    ------
    StagemeterError
        If the peak cannot be meant.
    """

    def __init__(self, device: str | None = None, peak_tflops: float | None = None) -> None:
        check_peak(device, peak_tflops)
        self.given_up = False
        self.throughput: Throughput | None = None
        self._device, self._peak_tflops = device, peak_tflops

    def watch(self, modules: Iterable[nn.Module], place: torch.device, dtype: str, own: int, devices: int) -> None:
        """Begin to look at modules.

        Parameters
        ----------
        modules : iterable of torch.nn.Module
            What does the work.
        place : torch.device
            Where.
        dtype : str
            Data type of the products.
        own : int
            Devices of this process, which share its batches.
        devices : int
            Devices of all processes.
        """
        self.leave()
        peak = training_peak(self._device, self._peak_tflops, place, dtype)
        self.throughput = Throughput(modules, place, None if peak is None else peak * own, devices // own)
        self.throughput.attach()

    def leave(self) -> None:
        """Leave the modules alone."""
        if self.throughput is not None:
            self.throughput.detach()
            self.throughput = None
