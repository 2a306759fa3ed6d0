"""Throughput and MFU in Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from stagemeter.integrations.watcher import Watcher, careful
from stagemeter.modules.throughput import EVALUATION, TRAIN

#: Data types of products by Lightning's precision; others compute in that of the parameters.
_PRECISIONS = {"bf16": "bfloat16", "16": "float16"}


class LightningStagemeterCallback(Watcher, Callback):
    """A callback that logs throughput and MFU through the trainer's own logger, every ``log_every_n_steps``.

    Parameters
    ----------
    device : str, optional
        The device of the training, one of `stagemeter devices`, or ``measured``. Default: the name from the driver.
    peak_tflops : float, optional
        Peak of one device in TFLOP/s, in place of a device.

    Raises
    ------
    StagemeterError
        If the peak is not valid.

    Notes
    -----
    `StagemeterCallback` describes the metrics. The callback watches the ``LightningModule`` and its children, each
    outermost call. No number includes what ``training_step`` computes outside of modules.
    """

    def __init__(self, device: str | None = None, peak_tflops: float | None = None) -> None:
        super().__init__(device, peak_tflops)
        self._logged_step = 0

    @careful
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to watch the module."""
        stored = str(pl_module.dtype).removeprefix("torch.")
        dtype = _PRECISIONS.get(str(trainer.precision).split("-")[0], stored)
        modules = [pl_module, *pl_module.children()]
        self.watch(modules, torch.device(pl_module.device), dtype, own=1, devices=max(1, trainer.world_size))

    @careful
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        if self.throughput is not None:
            self.throughput.begin_step()

    @careful
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the throughput where the trainer logs, and stop the clock there."""
        if self.throughput is None:
            return
        # While gradients accumulate, the number of the step stays.
        step, every = trainer.global_step, max(1, getattr(trainer, "log_every_n_steps", 1))
        due = step > self._logged_step and step % every == 0
        self.throughput.end_step(stop=due)
        if due:
            self._logged_step = step
            pl_module.log_dict(self.throughput.metrics(TRAIN), on_step=True, on_epoch=False)

    @careful
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if self.throughput is not None:
            self.throughput.pause()

    @careful
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if self.throughput is not None:
            self.throughput.pause()

    @careful
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the throughput of an evaluation."""
        if self.throughput is not None and not trainer.sanity_checking:
            pl_module.log_dict(self.throughput.metrics(EVALUATION), on_epoch=True)
        elif self.throughput is not None:
            self.throughput.metrics(EVALUATION)

    @careful
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching the module."""
        self.leave()
