"""Throughput and MFU in Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from stagemeter.integrations.watcher import Watcher, careful
from stagemeter.modules.throughput import EVALUATION, TRAIN

#: Data types of products by what Lightning calls a precision; others compute in that of the parameters.
_PRECISIONS = {"bf16": "bfloat16", "16": "float16"}


class LightningStagemeterCallback(Watcher, Callback):
    """Logs tokens per second, TFLOP/s and MFU through the trainer's own logger, at its ``log_every_n_steps``.

    Parameters
    ----------
    device : str, optional
        What the training runs on, one of `stagemeter devices`, or ``measured``; by default what the driver says.
    peak_tflops : float, optional
        Peak of one device in TFLOP/s, in place of that.

    Raises
    ------
    StagemeterError
        If the peak cannot be meant.

    Notes
    -----
    See `StagemeterCallback` for what is counted and timed. Looked at are the children of the ``LightningModule`` and
    the module itself, the outermost that is called: what ``training_step`` computes apart from modules is in no number.
    """

    def __init__(self, device: str | None = None, peak_tflops: float | None = None) -> None:
        super().__init__(device, peak_tflops)
        self._logged_step = 0

    @careful
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look at the module."""
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
        """Log what was reached where the trainer logs; stop the clock there and before an evaluation."""
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
        """Log what an evaluation reached."""
        if self.throughput is not None and not trainer.sanity_checking:
            pl_module.log_dict(self.throughput.metrics(EVALUATION), on_epoch=True)
        elif self.throughput is not None:
            self.throughput.metrics(EVALUATION)

    @careful
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self.leave()
