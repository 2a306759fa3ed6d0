"""Counters of training FLOPs on vision-language models, beside ours: ``python benchmarks/vision_language.py``.

One sample is an A4 page at 200 dpi and ten tokens of text. verl 0.9.1 comes from PyPI into a scratch folder, and
transformers 5.23.0 counts the parameters of the model on the meta device. Ours is three times the forward pass with the
output head on every position, by closed forms.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from conventions import download, functions
from stagemeter import AnalysisConfig, describe_model, estimate_model
from stagemeter.conventions import compare
from stagemeter.conventions.compare import decoder_of
from stagemeter.conventions.maxtext import maxtext
from stagemeter.conventions.sizes import read_sizes
from stagemeter.models.lookup import ModelDescription

MODELS = ("qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-4b", "qwen3-vl-8b", "qwen3-vl-30b-a3b")
MODELS += ("qwen3.5-27b", "gemma-3-4b")


def rows(verl: Any, name: str) -> list[list[str]]:
    """Return the lines of one model."""
    model = describe_model(name)
    report = estimate_model(model, AnalysisConfig(model=name))
    found, workload = compare(report, model), report["metadata"]["workload"]
    # One picture of a fixed size has none here, and verl's formula of encoders takes none of these.
    tokens, (width, height) = workload["prompt_tokens"], workload["view_size"] or (0, 0)
    config = transformers.AutoConfig.for_model(**model.config)
    patches = (width // config.vision_config.patch_size) * (height // config.vision_config.patch_size)
    vision = 3 * sum(stage["flops"] for key, stage in report["stages"].items() if key not in ("prefill", "decode"))
    ours, causal = 3 * found.trained * tokens, 3 * found.trained_causal * tokens
    with torch.device("meta"):
        built = transformers.AutoModelForImageTextToText.from_config(config)
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long, device="meta")}
    trainer = transformers.Trainer.floating_point_ops(type("Trainer", (), {"model": built}), inputs)
    counts: list[tuple[str, float | str, float | str]] = [
        ("verl", _verl(verl, config, tokens, patches), _verl_encoder(verl, config, patches)),
        ("HF floating_point_ops", trainer, "in it by parameters"),
    ]
    for row in found.rows:
        if row.convention in ("Megatron-LM", "MaxText", "torchtitan"):
            flops = 3 * row.flops_per_token * tokens if row.flops_per_token is not None else "no formula"
            encoder = _maxtext_encoder(model, tokens) if row.convention == "MaxText" else 0
            counts.append((row.convention, flops, encoder or "left out"))
    lines = [[name, "ours", _tera(ours), "", "", _tera(vision), ""], ["", "ours, visible pairs", _tera(causal)]]
    lines[1] += ["", "", _tera(vision), ""]
    for counter, flops, encoder in counts:
        of_encoder = [encoder, ""] if isinstance(encoder, str) else [_tera(encoder), _off(encoder, vision)]
        whole = [flops, "", ""] if isinstance(flops, str) else [_tera(flops), _off(flops, ours), _off(flops, causal)]
        lines.append(["", counter, *whole, *of_encoder])
    return lines


def _verl(verl: Any, config: Any, tokens: int, patches: int) -> float | str:
    try:
        count = verl.ESTIMATE_FUNC[config.model_type]
        return float(count(config, tokens, [tokens], 1.0, images_seqlens=[patches])) * 1e12
    except AttributeError as error:
        return f"fails: {error}"
    except KeyError:
        return "no formula"


def _maxtext_encoder(model: ModelDescription, tokens: int) -> float:
    with_picture, without = (
        maxtext(read_sizes(decoder_of(model), model.config, of), tokens) * tokens for of in ((), None)
    )
    return float(with_picture - without)


def _verl_encoder(verl: Any, config: Any, patches: int) -> float | str:
    if config.model_type not in verl.ESTIMATE_FUNC:
        return "no formula"
    try:
        return float(verl._estimate_qwen3_vit_flop([patches], config.vision_config))
    except AttributeError:
        return "fails"


def _tera(flops: Any) -> str:
    return f"{float(flops) / 1e12:.1f} T"


def _off(flops: Any, ours: Any) -> str:
    percent = round(100 * float(flops / ours - 1))
    return f"{percent:+d} %" if percent else "0 %"


if __name__ == "__main__":
    header = ["model", "counter", "FLOPs of a step", "to ours", "to ours, visible pairs", "vision alone", "to ours"]
    print(f"| {' | '.join(header)} |\n| :--- | :--- |{' ---: |' * 5}")
    with tempfile.TemporaryDirectory() as scratch:
        download(Path(scratch))
        counter = functions(Path(scratch) / "verl" / "utils" / "flops_counter.py")
        for model_name in MODELS:
            for line in rows(counter, model_name):
                print(f"| {' | '.join(line)} |")
