"""What ``generate`` costs and reaches, under an MLflow run: one line, autolog."""

import mlflow
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import stagemeter

stagemeter.autolog(peak_tflops=0.4, log_every_n=2)
model = LlamaForCausalLM(
    LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=512)
)
with mlflow.start_run() as run:
    for _ in range(4):
        model.generate(
            torch.randint(3, 500, (1, 32)), max_new_tokens=16, min_new_tokens=16, do_sample=False, pad_token_id=0
        )
mlflow.flush_async_logging()
print(mlflow.get_run(run.info.run_id).data.metrics)
