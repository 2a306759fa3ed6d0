"""Train a small LLaVA in a plain loop: the cost of a step by stage once, its time from the clock, MFU from both."""

import time

import mlflow
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import stagemeter

IMAGE, PEAK = 511, 0.1e12  # A guess of two CPU cores; an H100 SXM has 989e12.
STAGES = {
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "language_model": "model.language_model",
    "head": "lm_head",
}
sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
model = LlavaForConditionalGeneration(
    LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=112, patch_size=14),
        text_config=LlamaConfig(**sizes, vocab_size=512), image_token_index=IMAGE,
    )
)  # fmt: skip
model.model.vision_tower.requires_grad_(False)
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-4)

ids = torch.randint(3, 500, (4, 128))
ids[:, 1:65] = IMAGE
batch = {"input_ids": ids, "labels": ids, "pixel_values": torch.randn(4, 3, 112, 112)}
report = stagemeter.analyze(model, kwargs=batch, mode="train", stages=STAGES)
print(report)
with mlflow.start_run():
    stagemeter.log_static_report(report)
    for step in range(4):
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        peak_flops = (time.perf_counter() - start) * PEAK
        mlflow.log_metrics({f"mfu/train/{name}": part.flops / peak_flops for name, part in report.stages.items()}, step)
        mlflow.log_metric("mfu/train", report.total.flops / peak_flops, step)
        mlflow.log_metric("mfu_causal/train", report.total.flops_causal / peak_flops, step)
