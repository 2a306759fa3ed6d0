"""Throughput and MFU in the Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stagemeter.integrations.watcher import Watcher, careful
from stagemeter.modules.throughput import EVALUATION, TRAIN
from stagemeter.tracking.training import log_to_active_run


class StagemeterCallback(Watcher, TrainerCallback):
    """Logs tokens per second, TFLOP/s and MFU of each logging step, and of evaluations.

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
    FLOPs are those of the batches that came, counted once for each shape from shapes alone: of texts at their real
    lengths (``attention_mask``, or packed by ``position_ids`` or ``cu_seq_lens_q``), without what activation
    checkpointing computes again. ``hfu`` is of what ran, padding and that included. Times are of whole steps, loading
    of data included, evaluations and checkpoints not. Rates of tokens and samples are of all devices together, TFLOP/s
    and utilizations those of one. An error in here is a warning, never the end of a training.

    Examples
    --------
    >>> trainer = Trainer(model, args, train_dataset=texts, callbacks=[StagemeterCallback()])  # doctest: +SKIP
    """

    @careful
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to look at the model."""
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
        """Stop the clock where something else than training follows."""
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
        """Add what was reached to what is logged of a training step."""
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
        """Add what an evaluation reached to its metrics."""
        if self.throughput is not None:
            self._log(self.throughput.metrics(EVALUATION), state, {} if metrics is None else metrics)

    @careful
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model as it was."""
        self.leave()

    def _log(self, metrics: dict[str, float], state: TrainerState, logs: dict[str, Any]) -> None:
        logs.update(metrics)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(metrics)
        if state.is_world_process_zero:
            # The reporters of the Trainer have had their turn: a callback of the user's comes after them.
            log_to_active_run(metrics, state.global_step)
