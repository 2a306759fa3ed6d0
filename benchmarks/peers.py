"""Ours beside torch's FlopCounterMode, fvcore and calflops: error and time of each on common models.

    pip install -c constraints.txt -e ".[peers]"
    python benchmarks/peers.py

The truth is counted product by product on a real run on the CPU, by code that shares nothing with the package
(tests/modules/brute_force.py). Each counter then gets the model and inputs as its users would give them, in turn, and
the median of its times is what counts. Ours and torch's get shapes alone (the meta device), where torch's works there.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torchvision_operators import declare_operators

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "modules"))
from brute_force import brute_force_macs

FAILS = "fails"


@dataclass(frozen=True)
class Case:
    """A model and its inputs."""

    name: str
    make: Callable[[], nn.Module]
    kwargs: Callable[[], dict[str, Any]]


class Positional(nn.Module):
    """A model that takes positional inputs, which fvcore needs."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> Any:
        out = self.model(**dict(zip(self.names, inputs, strict=True)))
        return [value for value in out.values() if isinstance(value, torch.Tensor)] if isinstance(out, dict) else out


def cases() -> list[Case]:
    """Return models at sizes that a CPU runs in seconds."""
    import diffusers

    declare_operators()
    import timm
    import torchvision
    import transformers

    def picture(size: int) -> Callable[[], dict[str, Any]]:
        return lambda: {"x": torch.randn(1, 3, size, size)}

    def text(length: int) -> Callable[[], dict[str, Any]]:
        return lambda: {"input_ids": torch.randint(3, 500, (1, length))}

    small = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    heads = {"num_key_value_heads": 4, "vocab_size": 1000}
    unet = {"sample_size": 32, "block_out_channels": (64, 128), "cross_attention_dim": 64, "layers_per_block": 1} | {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    dit = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 4, "sample_size": 16, "in_channels": 4}
    vae = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2} | {
        "up_block_types": ("UpDecoderBlock2D",) * 2
    }
    return [
        Case("torchvision resnet50", lambda: torchvision.models.resnet50(), picture(224)),
        Case("torchvision mobilenet_v3_large", lambda: torchvision.models.mobilenet_v3_large(), picture(224)),
        Case("torchvision vit_b_16", lambda: torchvision.models.vit_b_16(), picture(224)),
        Case("timm convnext_tiny", lambda: timm.create_model("convnext_tiny"), picture(224)),
        Case("timm swin_tiny", lambda: timm.create_model("swin_tiny_patch4_window7_224"), picture(224)),
        Case("timm vit_base_patch16", lambda: timm.create_model("vit_base_patch16_224"), picture(224)),
        Case(
            "transformers Bert",
            lambda: transformers.BertModel(transformers.BertConfig(**small, vocab_size=1000)),
            text(128),
        ),
        Case(
            "transformers Llama",
            lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, **heads)),
            text(256),
        ),
        Case(
            "transformers Mixtral",
            lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**small, **heads)),
            text(256),
        ),
        Case(
            "transformers DeepSeek V3",
            lambda: transformers.DeepseekV3ForCausalLM(
                transformers.DeepseekV3Config(
                    hidden_size=256,
                    intermediate_size=512,
                    num_hidden_layers=3,
                    num_attention_heads=8,
                    vocab_size=1000,
                    n_routed_experts=8,
                    n_group=2,
                    topk_group=1,
                    num_experts_per_tok=2,
                    moe_intermediate_size=128,
                )
            ),
            text(256),
        ),
        Case(
            "diffusers UNet",
            lambda: diffusers.UNet2DConditionModel(**unet),
            lambda: {
                "sample": torch.randn(1, 4, 32, 32),
                "timestep": torch.tensor([10]),
                "encoder_hidden_states": torch.randn(1, 16, 64),
            },
        ),
        Case(
            "diffusers DiT",
            lambda: diffusers.DiTTransformer2DModel(**dit),
            lambda: {
                "hidden_states": torch.randn(1, 4, 16, 16),
                "timestep": torch.tensor([10]),
                "class_labels": torch.tensor([3]),
            },
        ),
        Case(
            "diffusers VAE",
            lambda: diffusers.AutoencoderKL(**vae),
            lambda: {"sample": torch.randn(1, 3, 64, 64)},
        ),
    ]


def ours(model: nn.Module, kwargs: dict[str, Any]) -> int:
    """Count with ``stagemeter.analyze``."""
    import stagemeter

    return stagemeter.analyze(model, kwargs=kwargs).total.macs_executed


def torchs(model: nn.Module, kwargs: dict[str, Any]) -> int:
    """Count with torch's FlopCounterMode."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**kwargs)
    return counter.get_total_flops() // 2


def fvcores(model: nn.Module, kwargs: dict[str, Any]) -> int:
    """Count with fvcore, without its counts of norms and pooling."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(Positional(model, list(kwargs)), tuple(kwargs.values()))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    products = {"conv", "addmm", "mm", "bmm", "matmul", "linear", "einsum"}
    return int(sum(value for name, value in analysis.by_operator().items() if name in products))


def calflopss(model: nn.Module, kwargs: dict[str, Any]) -> int:
    """Count with calflops."""
    from calflops import calculate_flops

    _, macs, _ = calculate_flops(
        model, kwargs=kwargs, print_results=False, print_detailed=False, output_as_string=False
    )
    return int(macs)


def on_meta(model: nn.Module, kwargs: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Copy the model and its inputs to the meta device."""
    import copy

    return copy.deepcopy(model).to("meta"), {name: value.to("meta") for name, value in kwargs.items()}


def attempt(count: Callable[[], int]) -> tuple[int | None, float]:
    """Return a count, or None where it fails, and its seconds."""
    start = time.perf_counter()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            macs = count()
        except Exception:
            return None, 0.0
    return macs, time.perf_counter() - start


def row(case: Case, repeats: int) -> list[str]:
    """Return one line of the table."""
    torch.manual_seed(0)
    model, kwargs = case.make().eval(), case.kwargs()
    truth = brute_force_macs(model, **kwargs)
    bare, shapes = on_meta(model, kwargs)
    on_shapes = attempt(lambda: torchs(bare, shapes))[0] is not None
    counters = [
        lambda: ours(bare, shapes),
        (lambda: torchs(bare, shapes)) if on_shapes else (lambda: torchs(model, kwargs)),
        lambda: fvcores(model, kwargs),
        lambda: calflopss(model, kwargs),
    ]
    found = [[attempt(counter) for counter in counters] for _ in range(repeats)]
    cells = [case.name, f"{truth:,}"]
    for column in zip(*found, strict=True):
        macs, seconds = column[0][0], statistics.median(seconds for _, seconds in column)
        cells += [FAILS, ""] if macs is None else [error(macs, truth), f"{seconds:.2f} s"]
    ratio = statistics.median(ours[1] / theirs[1] for ours, theirs, *_ in found if theirs[1])
    return [*cells[:6], f"{ratio:.2f} x", *cells[6:]]


def error(macs: int, truth: int) -> str:
    """Return the relative error; 0 only for an exact count."""
    return "0" if macs == truth else f"{100 * (macs - truth) / truth:+.3g} %"


@click.command()
@click.option("--repeats", default=5, help="How often each counter is run.")
@click.option("--only", default="", help="A part of the names of the models that are wanted.")
def main(repeats: int, only: str) -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    names = ["model", "MACs", "ours", "", "torch", "", "ours / torch", "fvcore", "", "calflops", ""]
    click.echo(f"| {' | '.join(names)} |\n| :--- |{' ---: |' * (len(names) - 1)}")
    for case in cases():
        if only in case.name:
            click.echo(f"| {' | '.join(row(case, repeats))} |")


if __name__ == "__main__":
    main()
