"""Configurations of models, of their pages, their quantization and their adapters, with faults in them."""

import json
import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from judging import Ended, absurd_report, run
from mutations import mutated_json

from stagemeter.models.families import families

#: Mutations of each shipped configuration.
EACH = 40
OPTIONS = (
    (),
    ("--new-tokens", "1"),
    ("--batch-size", "3", "--seq-len", "100"),
    ("--device", "H100-SXM"),
    ("--dtype", "float32", "--kv-cache-dtype", "float8_e4m3fn", "--new-tokens", "3000"),
)
#: As published checkpoints have them.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "fp8": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    },
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True},
            }
        },
    },
    "nvfp4": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            }
        },
    },
}
ADAPTER = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_dora": False,
    "rank_pattern": {},
    "modules_to_save": None,
}
PREPROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2-vl-7b": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 3136, "longest_edge": 12845056},
    },
    "smolvlm-256m": {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": True,
        "max_image_size": {"longest_edge": 512},
        "size": {"longest_edge": 2048},
    },
    "internvl3-1b": {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 12,
        "size": {"height": 448, "width": 448},
    },
    "llava-1.6-mistral-7b": {
        "image_processor_type": "LlavaNextImageProcessor",
        "crop_size": {"height": 336, "width": 336},
        "size": {"shortest_edge": 336},
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "mistral-small-3.1-24b": {
        "image_processor_type": "PixtralImageProcessor",
        "patch_size": 14,
        "size": {"longest_edge": 1540},
    },
    "gemma-3-4b": {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": 896, "width": 896},
        "do_pan_and_scan": None,
    },
}


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """Every shipped configuration of a family, by name."""
    return {
        name: json.loads(file.read_text(encoding="utf-8"))
        for family in families().values()
        for name, file in family.shipped.items()
    }


def analyze(folder: Path, chance: random.Random, *options: str) -> Callable[[], Ended]:
    """The command of a folder's model, with some options."""
    more = (*chance.choice(OPTIONS), *options)
    return partial(
        run, "analyze", "--estimate", "--no-track", "--json", "--output-dir", "out", "--model", str(folder.name), *more
    )


def write(folder: Path, config: Any) -> None:
    """Write a configuration that has no fault."""
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("model", shipped())
def test_configuration(fuzz, model):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        (folder / "config.json").write_bytes(mutated_json(shipped()[model], chance))
        return analyze(folder, chance)

    fuzz(f"config/{model}", EACH, mutate, absurd_report)


@pytest.mark.parametrize("method", QUANTIZATIONS)
@pytest.mark.parametrize("model", ["qwen3-0.6b", "gpt-oss-20b", "qwen3-30b-a3b"])
def test_quantization(fuzz, model, method):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        changed = mutated_json(QUANTIZATIONS[method], chance)
        config = json.dumps({**shipped()[model], "quantization_config": None}).encode()
        (folder / "config.json").write_bytes(
            config.replace(b'"quantization_config": null', b'"quantization_config": ' + changed)
        )
        return analyze(folder, chance)

    fuzz(f"quantization/{method}/{model}", EACH, mutate, absurd_report)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2-vl-7b", "gpt-oss-20b"])
def test_adapter(fuzz, model):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        write(folder, shipped()[model])
        (folder / "adapter_config.json").write_bytes(mutated_json(ADAPTER, chance))
        return analyze(folder, chance, "--adapter", folder.name)

    fuzz(f"adapter/{model}", 2 * EACH, mutate, absurd_report)


@pytest.mark.parametrize("model", PREPROCESSORS)
def test_preprocessor(fuzz, model):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        write(folder, shipped()[model])
        (folder / "preprocessor_config.json").write_bytes(mutated_json(PREPROCESSORS[model], chance))
        return analyze(folder, chance)

    fuzz(f"preprocessor/{model}", EACH, mutate, absurd_report)
