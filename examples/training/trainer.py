"""Throughput and MFU of a training with transformers' Trainer, in MLflow: one line, the callback."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from stagemeter import StagemeterCallback

model = LlamaForCausalLM(
    LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=512)
)
texts = []
for length in (12, 30, 64, 48) * 8:
    ids = torch.randint(3, 500, (64,))
    texts.append({"input_ids": ids, "labels": ids, "attention_mask": (torch.arange(64) < length).long()})

trainer = Trainer(
    model,
    TrainingArguments(
        "out", max_steps=8, logging_steps=4, per_device_train_batch_size=4, report_to="mlflow", use_cpu=True
    ),
    train_dataset=texts,
    # A device whose peak is known needs no number: StagemeterCallback().
    callbacks=[StagemeterCallback(peak_tflops=0.4)],
)
trainer.train()
print({name: value for name, value in trainer.state.log_history[-2].items() if name.endswith("/train")})
