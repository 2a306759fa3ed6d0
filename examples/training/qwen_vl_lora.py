"""Fine-tune Qwen3-VL by LoRA with transformers' Trainer, the vision tower frozen: MFU by stage in MLflow.

The model is small and has random weights, and its pictures are noise, so that this runs in seconds on a CPU.
"""

import random

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Trainer, TrainingArguments

from stagemeter import StagemeterCallback

IMAGE, START, END, PAD = 501, 502, 503, 0

model = Qwen3VLForConditionalGeneration(
    Qwen3VLConfig(
        vision_config={
            "depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 16,
            "out_hidden_size": 128, "num_position_embeddings": 64, "deepstack_visual_indexes": [1, 2],
        },
        text_config={
            "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "pad_token_id": PAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [8, 4, 4]},
        },
        image_token_id=IMAGE, vision_start_token_id=START, vision_end_token_id=END, video_token_id=504,
    )
)  # fmt: skip
# peft freezes all other weights, those of the tower and the projector among them.
adapters = LoraConfig(r=8, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)")
model = get_peft_model(model, adapters)


def sample(words: int, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """A text of so many words, and a picture of so many patches, of which four become a token."""
    tokens = [START, *[IMAGE] * (rows * columns // 4), END, *random.choices(range(3, 500), k=words)]
    return {
        "input_ids": torch.tensor(tokens),
        "pixel_values": torch.randn(rows * columns, 3 * 2 * 16 * 16),
        "image_grid_thw": torch.tensor([[1, rows, columns]]),
    }


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad texts to the longest, and put pictures one after another, as Qwen's processor does."""
    ids = torch.nn.utils.rnn.pad_sequence([one["input_ids"] for one in samples], batch_first=True, padding_value=PAD)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "labels": ids.masked_fill((ids == PAD) | (ids == IMAGE), -100),
        "pixel_values": torch.cat([one["pixel_values"] for one in samples]),
        "image_grid_thw": torch.cat([one["image_grid_thw"] for one in samples]),
    }


pages = [sample(*sizes) for sizes in ((20, 16, 12), (60, 8, 8), (35, 12, 16), (90, 10, 14)) * 4]
trainer = Trainer(
    model,
    TrainingArguments(
        "out", max_steps=4, logging_steps=2, per_device_train_batch_size=4, report_to="mlflow", use_cpu=True,
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
    ),
    train_dataset=pages,
    data_collator=collate,
    # A GPU whose peak is known needs no number: StagemeterCallback(). 0.1 TFLOP/s is a guess of two CPU cores.
    callbacks=[StagemeterCallback(peak_tflops=0.1)],
)  # fmt: skip
trainer.train()
logged = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
for name, value in logged.items():
    if name.startswith(("mfu/", "hfu/", "tokens", "padding", "step_ms")):
        print(f"{name:28}{value:.4g}")
