"""Throughput and MFU in the Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stagemeter.integrations.watcher import Watcher, careful
from stagemeter.modules.throughput import EVALUATION, TRAIN
from stagemeter.tracking.autologging import log_to_active_run


class StagemeterCallback(Watcher, TrainerCallback):
    """A callback that logs tokens per second, TFLOP/s and MFU of each logging step, and of evaluations.

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
    FLOPs are those of the batches, counted from shapes alone, once for each shape. Texts count at their real lengths
    (``attention_mask``, or packed by ``position_ids`` or ``cu_seq_lens_q``), without the recomputation of activation
    checkpointing; ``hfu`` includes both. Times are those of whole steps with loading of data, without evaluations and
    checkpoints. Tokens and samples per second are those of all devices, TFLOP/s and utilizations those of one. A
    failure in here is a warning and never ends a training.

    Examples
    --------
    >>> trainer = Trainer(model, args, train_dataset=texts, callbacks=[StagemeterCallback()])  # doctest: +SKIP
    """

    @careful
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to watch the model."""
        model = kwargs["model"]
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        stored = "float32" if parameter is None else str(parameter.dtype).removeprefix("torch.")
        dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else stored
        # Several devices of one process share its batches.
        own = max(1, args.n_gpu)
        self.watch([model], torch.device(args.device), dtype, own, own * max(1, args.world_size))

    @careful
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        if self.throughput is not None:
            self.throughput.begin_step()

    @careful
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock before work other than training."""
        if self.throughput is not None:
            other = control.should_log or control.should_evaluate or control.should_save
            self.throughput.end_step(stop=other or control.should_training_stop or control.should_epoch_stop)

    @careful
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the metrics to the log of a training step."""
        if self.throughput is not None and logs is not None and "loss" in logs:
            self._log(self.throughput.metrics(TRAIN), state, logs)

    @careful
    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the throughput of an evaluation to its metrics."""
        if self.throughput is not None:
            self._log(self.throughput.metrics(EVALUATION), state, {} if metrics is None else metrics)

    @careful
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching the model."""
        self.leave()

    def _log(self, metrics: dict[str, float], state: TrainerState, logs: dict[str, Any]) -> None:
        logs.update(metrics)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(metrics)
        if state.is_world_process_zero:
            # The Trainer's own reporters ran before this callback, without these metrics.
            log_to_active_run(metrics, state.global_step)
