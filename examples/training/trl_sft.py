"""Fine-tune a small Qwen3 by LoRA with TRL's SFTTrainer on packed texts: MFU in MLflow.

The model has random weights, and its tokenizer knows words of the texts alone: nothing is downloaded.
"""

import random

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from stagemeter import StagemeterCallback

words = ["<pad>", "<eos>", "<unk>", *(f"word{number}" for number in range(1000))]
words_alone = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
words_alone.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words_alone, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
)
model = Qwen3ForCausalLM(
    Qwen3Config(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )
)  # fmt: skip
texts = Dataset.from_list(
    [{"text": " ".join(random.choices(words[3:], k=length))} for length in (12, 70, 31, 100, 25, 55, 90, 18) * 2]
)
trainer = SFTTrainer(
    model,
    SFTConfig(
        "out", max_length=128, packing=True, num_train_epochs=1, logging_steps=2, per_device_train_batch_size=2,
        report_to="mlflow", use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    ),
    train_dataset=texts,
    processing_class=tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear"),
    # A GPU whose peak is known needs no number: StagemeterCallback(). 0.1 TFLOP/s is a guess of two CPU cores.
    callbacks=[StagemeterCallback(peak_tflops=0.1)],
)  # fmt: skip
trainer.train()
logged = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
for name, value in logged.items():
    if name.startswith(("mfu/", "hfu/", "tokens", "padding", "step_ms")):
        print(f"{name:28}{value:.4g}")
