"""Run other projects' counters on small models: ``python benchmarks/conventions.py``.

It downloads torchtitan 0.3.0, verl 0.9.1 and DeepSpeed 0.19.8 from PyPI into a scratch folder, takes the functions that
count out of them, and runs these on models of transformers 5.23.0. `tests/conventions/peers.json` keeps the answers,
which the formulas of `stagemeter.conventions` must equal to the integer.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import subprocess
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

OUTPUT = Path(__file__).parents[1] / "tests" / "conventions" / "peers.json"
PACKAGES = ("torchtitan==0.3.0", "verl==0.9.1")
SOURCES = ("deepspeed==0.19.8",)
SOURCE = "benchmarks/conventions.py: torchtitan 0.3.0, verl 0.9.1 and DeepSpeed 0.19.8 from PyPI, transformers 5.23.0"
#: Tokens of a sequence, and of those that DeepSpeed runs for real.
TOKENS, RUN_TOKENS = 300, 24

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
_WINDOWS = {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 2}
_LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
_EXPERTS = {"moe_intermediate_size": 40, "num_experts_per_tok": 3}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
}
_DELTA |= {"linear_conv_kernel_dim": 4, "head_dim": 24, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}
_INDEXER = {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 128}
_CHOICE = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 2}
_ENCODER = {"depth": 3, "hidden_size": 48, "intermediate_size": 100, "num_heads": 4, "out_hidden_size": 64} | {
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SMALL, "tie_word_embeddings": False},
    "llama tied": {**_SMALL, "tie_word_embeddings": True},
    "qwen2": {**_SMALL, "tie_word_embeddings": False},
    "qwen3": {**_SMALL, "head_dim": 24, "tie_word_embeddings": True},
    "mistral": {**_SMALL, "head_dim": 16, "sliding_window": 100, "tie_word_embeddings": False},
    "qwen3_moe": {**_SMALL, **_EXPERTS, "head_dim": 24, "num_experts": 8, "tie_word_embeddings": False},
    "gpt_oss": {**_SMALL, **_WINDOWS, "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 3}
    | {"tie_word_embeddings": False},
    "gemma3_text": {**_SMALL, **_WINDOWS, "head_dim": 16, "tie_word_embeddings": True},
    "deepseek_v3": {**_SMALL, **_EXPERTS, **_LATENT, **_CHOICE, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "deepseek_v32": {**_SMALL, **_EXPERTS, **_LATENT, **_CHOICE, **_INDEXER, "num_key_value_heads": 8}
    | {"tie_word_embeddings": False},
    "qwen3_next": {**_SMALL, **_EXPERTS, **_DELTA, "num_experts": 8, "shared_expert_intermediate_size": 40}
    | {"tie_word_embeddings": False},
    "qwen3_5_text": {**_SMALL, **_DELTA, "tie_word_embeddings": True},
    "mamba2": {"hidden_size": 64, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16, "state_size": 24}
    | {"n_groups": 2, "vocab_size": 1000, "tie_word_embeddings": True},
    "gemma4_text": {**_SMALL, **_WINDOWS, "head_dim": 16, "global_head_dim": 24, "num_kv_shared_layers": 2}
    | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 500, "tie_word_embeddings": True},
    "qwen2_5_vl": {**_SMALL, "tie_word_embeddings": False, "vision_config": _ENCODER},
    "qwen3_vl": {"tie_word_embeddings": False, "text_config": {**_SMALL, "head_dim": 24, "model_type": "qwen3_vl_text"}}
    | {"vision_config": {**_ENCODER, "deepstack_visual_indexes": [0, 2]}},
    "qwen3_5": {"tie_word_embeddings": False, "text_config": {**_SMALL, **_DELTA, "model_type": "qwen3_5_text"}}
    | {"vision_config": _ENCODER},
    "qwen3_5_moe": {"tie_word_embeddings": False}
    | {"text_config": {**_SMALL, **_EXPERTS, **_DELTA, "num_experts": 8, "shared_expert_intermediate_size": 40}}
    | {"vision_config": _ENCODER},
}
#: Model types of which torchtitan has no model, and those that DeepSpeed's profiler counts whole.
NOT_TITAN = ("deepseek_v32", "mamba2", "gemma4_text")
PLAIN = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")
#: Patches of the picture before a vision-language model's prompt.
PATCHES = 8 * 12


def model_type(name: str) -> str:
    """Return the model type of a case."""
    return name.split()[0]


def functions(file: Path, *names: str) -> types.SimpleNamespace:
    """Return functions and tables of a file without the imports around them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.Assign)) and (not names or getattr(node, "name", "") in names)
    ]
    space: dict[str, Any] = {"nn": nn, "torch": torch, "inspect": inspect, "logger": logging.getLogger("peer")}
    exec(compile("from __future__ import annotations\n" + ast.unparse(tree), str(file), "exec"), space)
    return types.SimpleNamespace(**space)


def built(name: str, device: str = "meta") -> nn.Module:
    """Build the model of a case."""
    config = transformers.AutoConfig.for_model(model_type(name), **CONFIGS[name])
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config).eval()


class Renamed(nn.Module):
    """Parameters of a model under torchtitan's names, with the embedding as a child."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tok_embeddings = model.get_input_embeddings()
        self.parameters_by_name = dict(self._renamed(model))

    @staticmethod
    def _renamed(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        names = {".mlp.gate.": ".moe.router.", ".mlp.router.": ".moe.router.", ".mlp.experts.": ".moe.routed_experts."}
        names |= {".mlp.shared_experts.": ".moe.shared_experts.", "embed_tokens": "tok_embeddings"}
        names |= {
            ".mlp.shared_expert.": ".moe.shared_experts.",
            ".mlp.shared_expert_gate.": ".moe.shared_experts.gate.",
        }
        for name, parameter in model.named_parameters():
            for theirs, titan in names.items():
                name = name.replace(theirs, titan)
            yield name, parameter

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters by torchtitan's names."""
        return iter(self.parameters_by_name.items())


def torchtitans(folder: Path, name: str) -> int:
    """Return torchtitan's training FLOPs per token."""
    titan = functions(
        folder / "torchtitan" / "models" / "utils.py",
        "get_dense_model_nparams_and_flops",
        "get_moe_model_nparams_and_flops",
    )
    config, model = CONFIGS[name], Renamed(built(name))
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    widths = 2 * config.get("head_dim", config["hidden_size"] // heads)
    if model_type(name) == "deepseek_v3":
        widths = sum(config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    if not experts and "linear_num_key_heads" not in config:
        return int(
            titan.get_dense_model_nparams_and_flops(
                model, layers, heads, widths, TOKENS, enable_weight_tying=config["tie_word_embeddings"]
            )[1]
        )
    router = types.SimpleNamespace(top_k=config.get("num_experts_per_tok"))
    moe = types.SimpleNamespace(router=router, num_experts=experts) if experts else None
    kinds = config.get("layer_types") or ["full_attention"] * layers
    attention = [None if kind == "linear_attention" else True for kind in kinds]
    described = types.SimpleNamespace(layers=[types.SimpleNamespace(moe=moe, attention=full) for full in attention])
    described.enable_weight_tying = config["tie_word_embeddings"]
    return int(titan.get_moe_model_nparams_and_flops(described, model, heads, widths, TOKENS)[1])


def verls(folder: Path, name: str) -> int | None:
    """Return verl's training FLOPs of one sequence; None of a model type that it does not know."""
    counter = functions(folder / "verl" / "utils" / "flops_counter.py")
    if model_type(name) not in counter.ESTIMATE_FUNC:
        return None
    config = transformers.AutoConfig.for_model(model_type(name), **CONFIGS[name])
    more = {"images_seqlens": [PATCHES]} if "vision_config" in CONFIGS[name] else {}
    return round(counter.ESTIMATE_FUNC[model_type(name)](config, TOKENS, [TOKENS], 1.0, **more) * 1e12)


def hugging_faces(name: str) -> int:
    """Return what transformers' Trainer counts for one sequence."""
    inputs = {"input_ids": torch.zeros(1, TOKENS, dtype=torch.long, device="meta")}
    return transformers.Trainer.floating_point_ops(types.SimpleNamespace(model=built(name)), inputs)


def deepspeeds(folder: Path, name: str) -> int:
    """Return the MACs of DeepSpeed's profiler over one forward pass."""
    for module in ("accelerator", "utils", "moe", "moe.layer", "utils.timer", "utils.torch"):
        sys.modules[f"deepspeed.{module}"] = types.ModuleType(module)
    sys.modules["deepspeed"] = types.ModuleType("deepspeed")
    sys.modules["einops"] = types.SimpleNamespace(einsum=None)
    stub = types.SimpleNamespace(is_available=lambda: False, synchronize=lambda: None)
    sys.modules["deepspeed.accelerator"].get_accelerator = lambda: stub
    sys.modules["deepspeed.utils"].logger = logging.getLogger("peer")
    sys.modules["deepspeed.moe.layer"].MoE = type("MoE", (nn.Module,), {})
    for timer in ("FORWARD_GLOBAL_TIMER", "BACKWARD_GLOBAL_TIMER", "STEP_GLOBAL_TIMER"):
        setattr(sys.modules["deepspeed.utils.timer"], timer, "")
    sys.modules["deepspeed.utils.torch"].required_torch_version = lambda **_: True
    (file,) = folder.glob("deepspeed-*/deepspeed/profiling/flops_profiler/profiler.py")
    profiler = types.ModuleType("profiler")
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), profiler.__dict__)
    model = built(name, "cpu")
    counting = profiler.FlopsProfiler(model)
    counting.start_profile()
    with torch.no_grad():
        model(torch.randint(0, 500, (1, RUN_TOKENS)), use_cache=False)
    macs = int(counting.get_total_macs())
    counting.end_profile()
    return macs


def download(folder: Path) -> None:
    """Put the peers' code into a folder."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, *PACKAGES], check=True)
    subprocess.run([*pip, "--no-binary", ":all:", *SOURCES], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    for archive_file in folder.glob("*.tar.gz"):
        with tarfile.open(archive_file) as archive:
            archive.extractall(folder, filter="data")


def answers(folder: Path) -> dict[str, Any]:
    """Return the answers of all peers for all cases."""
    found: dict[str, Any] = {"_source": SOURCE}
    for name, config in CONFIGS.items():
        kind = model_type(name)
        case: dict[str, Any] = {"config": {"model_type": kind, **config}, "tokens": TOKENS, "verl": verls(folder, name)}
        if "vision_config" in config:
            found[name] = {**case, "patches": PATCHES}
            continue
        case["HF floating_point_ops"] = hugging_faces(name)
        if kind not in NOT_TITAN:
            case["torchtitan"] = torchtitans(folder, name)
        if kind in PLAIN:
            case |= {"run_tokens": RUN_TOKENS, "DeepSpeed": deepspeeds(folder, name)}
        found[name] = case
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        download(Path(scratch))
        lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in answers(Path(scratch)).items()]
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
