"""Throughput of a training or an evaluation: tokens per second, TFLOP/s and MFU."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from stagemeter.core.errors import StagemeterError
from stagemeter.core.metrics import training_values
from stagemeter.modules.batch_costs import BatchCost, BatchCosts, PartCost, Stages
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
    stages : mapping, optional
        Names of each stage's modules, by module of `modules`. FLOPs and MFU split by these.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        place: torch.device,
        peak: float | None,
        devices: int = 1,
        stages: Mapping[nn.Module, Stages] | None = None,
    ) -> None:
        self._recorder = CallRecorder(modules)
        self._costs = BatchCosts(self._recorder.bare, stages)
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
        self._recorder.in_step = True
        if self._began is None:
            self._began = time.perf_counter()

    def end_step(self, stop: bool) -> None:
        """End a step, and stop the clock before work other than training, such as an evaluation."""
        self._steps += 1
        self._recorder.in_step = False
        if stop:
            self.pause()

    def pause(self) -> None:
        """Stop the clock until the next step begins."""
        if self._began is not None:
            self._wait()
            self._seconds += time.perf_counter() - self._began
            self._began = None

    def metrics(self, stage: str = TRAIN) -> dict[str, float]:
        """Return the metrics since the last call, by names such as ``mfu/train``; none if nothing ran.

        Those of a part of the model have names such as ``mfu/train/vision``.
        """
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
        parts: dict[str, dict[str, float]] = {stage: {"step_ms": 1000 * seconds / steps} if steps else {}}
        try:
            with self._recorder.blind():
                cost = self._costs.of(calls)
        except StagemeterError as error:
            self._say(f"FLOPs and MFU are left out: {error}")
        else:
            self._remark(cost)
            parts[stage] |= self._rates(cost, seconds) | self._shares(cost.whole, seconds, steps or len(calls))
            for name, part in cost.stages.items():
                parts[f"{stage}/{name}"] = self._shares(part, seconds, steps or len(calls))
        return training_values({"parts": parts})

    def _rates(self, cost: BatchCost, seconds: float) -> dict[str, float]:
        rates = {
            "tflops_per_second": 2 * cost.whole.macs / seconds / 1e12,
            "samples_per_second": cost.samples * self._devices / seconds,
        }
        if cost.tokens:
            rates["tokens_per_second"] = cost.tokens * self._devices / seconds
            rates["padding"] = 1 - cost.tokens / cost.tokens_run
        return rates

    def _shares(self, part: PartCost, seconds: float, steps: int) -> dict[str, float]:
        """Return a part's FLOPs in a step, and their share of the whole steps' peak: shares add up over parts."""
        shares = {}
        for flops, share, macs in (
            ("flops", "mfu", part.macs),
            ("flops_causal", "mfu_causal", part.macs_causal),
            ("flops_executed", "hfu", part.macs_run),
        ):
            if macs is not None:
                shares[flops] = 2 * macs / steps
                if self._peak is not None:
                    shares[share] = 2 * macs / seconds / self._peak
        return shares

    def _remark(self, cost: BatchCost) -> None:
        if self._recorder.left_out:
            self._say("no number includes passes without gradients inside of a step, such as a reference model's")
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
