"""A training of two processes, each with its own batches: ``torchrun --nproc-per-node 2 two_processes.py FOLDER``."""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from stagemeter import StagemeterCallback

torch.manual_seed(0)
config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=96)
texts = []
for _ in range(16):
    ids = torch.randint(3, 90, (24,))
    texts.append({"input_ids": ids, "labels": ids})
folder = Path(sys.argv[1])
trainer = Trainer(
    LlamaForCausalLM(config),
    TrainingArguments(
        str(folder / "out"),
        max_steps=2,
        logging_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    ),
    train_dataset=texts,
    callbacks=[StagemeterCallback(peak_tflops=0.4)],
)
trainer.train()
rank = trainer.args.process_index
(entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
(folder / f"{rank}.json").write_text(json.dumps({**entry, "processes": trainer.args.world_size}))
