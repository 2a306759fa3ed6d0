"""Throughput of a training or an evaluation: tokens per second, TFLOP/s and MFU."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch
from torch import nn

from stagemeter.core.errors import StagemeterError
from stagemeter.modules.batch_costs import BatchCost, BatchCosts
from stagemeter.modules.calls import CallRecorder

logger = logging.getLogger(__name__)

TRAIN, EVALUATION = "train", "eval"


class Throughput:
    """A meter of a training's steps: their time, and the cost of the calls in them.

    Each shape is counted once, while the clock stands.

    Parameters
    ----------
    modules : iterable of torch.nn.Module
        The modules that do the work. Their outermost calls are counted.
    place : torch.device
        Their device. The meter waits for it before it reads the clock.
    peak : float or None
        Peak FLOP/s of one device. None leaves MFU out.
    devices : int
        Number of devices that do the same work on different data.
    """

    def __init__(self, modules: Iterable[nn.Module], place: torch.device, peak: float | None, devices: int = 1) -> None:
        self._recorder = CallRecorder(modules)
        self._costs = BatchCosts(self._recorder.bare)
        self._place, self._peak, self._devices = place, peak, devices
        self._began: float | None = None
        self._seconds = 0.0
        self._steps = 0
        self._said: set[str] = set()

    def attach(self) -> None:
        """Start to record calls."""
        self._recorder.attach()

    def detach(self) -> None:
        """Stop recording, and leave the modules as they were."""
        self._recorder.detach()

    def begin_step(self) -> None:
        """Begin a step, and start the clock if it stands."""
        if self._began is None:
            self._began = time.perf_counter()

    def end_step(self, stop: bool) -> None:
        """End a step, and stop the clock before work other than training, such as an evaluation."""
        self._steps += 1
        if stop:
            self.pause()

    def pause(self) -> None:
        """Stop the clock until the next step begins."""
        if self._began is not None:
            self._wait()
            self._seconds += time.perf_counter() - self._began
            self._began = None

    def metrics(self, stage: str = TRAIN) -> dict[str, float]:
        """Return the metrics since the last call, by names such as ``mfu/train``; none if nothing ran."""
        if stage == TRAIN:
            seconds, steps = self._seconds, self._steps
            self._seconds, self._steps = 0.0, 0
        else:
            self._wait()
            began = self._recorder.first_evaluation
            seconds = 0.0 if began is None else time.perf_counter() - began
            steps = 0
        calls = self._recorder.take(train=stage == TRAIN)
        if not calls or seconds <= 0:
            return {}
        metrics = {f"step_ms/{stage}": 1000 * seconds / steps} if steps else {}
        try:
            with self._recorder.blind():
                cost = self._costs.of(calls)
        except StagemeterError as error:
            self._say(f"FLOPs and MFU are left out: {error}")
            return metrics
        self._remark(cost)
        return metrics | self._rates(cost, seconds, steps or len(calls), stage)

    def _rates(self, cost: BatchCost, seconds: float, steps: int, stage: str) -> dict[str, float]:
        rates = {
            f"flops/{stage}": 2 * cost.macs / steps,
            f"tflops_per_second/{stage}": 2 * cost.macs / seconds / 1e12,
            f"samples_per_second/{stage}": cost.samples * self._devices / seconds,
        }
        if cost.tokens:
            rates[f"tokens_per_second/{stage}"] = cost.tokens * self._devices / seconds
            rates[f"padding/{stage}"] = 1 - cost.tokens / cost.tokens_run
        rates[f"flops_executed/{stage}"] = 2 * cost.macs_run / steps
        if cost.macs_causal is not None:
            rates[f"flops_causal/{stage}"] = 2 * cost.macs_causal / steps
        if self._peak is not None:
            if cost.macs_causal is not None:
                rates[f"mfu_causal/{stage}"] = 2 * cost.macs_causal / seconds / self._peak
            rates[f"mfu/{stage}"] = 2 * cost.macs / seconds / self._peak
            rates[f"hfu/{stage}"] = 2 * cost.macs_run / seconds / self._peak
        return rates

    def _remark(self, cost: BatchCost) -> None:
        for note in cost.notes:
            self._say(note)
        if cost.unsupported:
            self._say(f"no number includes operators without a formula: {', '.join(sorted(cost.unsupported))}")

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning("%s", message)

    def _wait(self) -> None:
        if self._place.type == "cuda":
            torch.cuda.synchronize(self._place)
