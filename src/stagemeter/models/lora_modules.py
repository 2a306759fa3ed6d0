"""LoRA adapters in built models, for the counter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stagemeter.core.module_attributes import COUNTED_APART
from stagemeter.models.decoder.quantized import is_plain_linear
from stagemeter.models.lora import Adapter, AdapterFound

_ADAPTER = "stagemeter_adapter"
#: Names of the matrices of an expert in checkpoints; a model holds those of all experts of a layer as one parameter.
_EXPERT_MATRICES = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
_OF_EXPERTS = 3
#: Modules that PEFT can put an adapter beside.
_CAN_BE_ADAPTED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def adapt(model: nn.Module, adapter: Adapter, decoder: Sequence[str], head: Sequence[str]) -> None:
    """Put a LoRA adapter beside the layers that it names, or raise StagemeterError if there are none.

    Its cost is counted apart, and the model's own parameters keep their names. `decoder` and `head` name the modules
    that hold the decoder's layers and the output head.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if is_plain_linear(module) and (name in head or any(name.startswith(f"{holder}.") for holder in decoder))
    }
    output = next((name for name in layers if name in head), "")
    taken = [module for name, module in layers.items() if adapter.takes(name, output)]
    if not taken:
        raise adapter.no_target([name.partition(".layers.")[2].partition(".")[2] or name for name in layers])
    # Equal layers share a class, because the counter compares classes to find them.
    kinds: dict[Any, Any] = {}
    for module in taken:
        device, dtype = module.weight.device, module.weight.dtype
        beside = nn.Sequential(
            nn.Linear(module.in_features, adapter.rank, bias=False, device=device, dtype=dtype),
            nn.Linear(adapter.rank, module.out_features, bias=False, device=device, dtype=dtype),
        )
        setattr(beside, COUNTED_APART, True)
        kind: Any = type(module)
        if kind not in kinds:
            kinds[kind] = _adapted(kind)
        module.__class__ = kinds[kind]
        module.add_module(_ADAPTER, beside)


def _adapted(kind: Any) -> Any:
    def forward(self: nn.Linear, input: torch.Tensor) -> Any:
        return kind.forward(self, input) + getattr(self, _ADAPTER)(input)

    return type(f"Adapted{kind.__name__}", (kind,), {"forward": forward})


def find_adapter(model: Any, adapter: Adapter, head: Sequence[str]) -> AdapterFound:
    """Find an adapter in a model that `adapt` put it into; `head` names the output head."""
    modules = dict(model.named_modules())
    beside = [module for module in modules.values() if getattr(module, COUNTED_APART, False)]
    output = next((name for name in modules if name in head), "")
    outside = tuple(
        name
        for name, module in modules.items()
        if not is_adapter(name) and not hasattr(module, _ADAPTER) and _names(adapter, name, module, output)
    )
    return AdapterFound(
        params=sum(parameter.numel() for module in beside for parameter in module.parameters()),
        outside=outside,
        nowhere=_nowhere(adapter, modules),
    )


def _names(adapter: Adapter, name: str, module: nn.Module, output: str) -> bool:
    """Return whether an adapter names a module, or a matrix of the experts that it holds together."""
    if _holds_experts(name, module):
        return any(adapter.takes(f"{name}.0.{matrix}", output) for matrix in _EXPERT_MATRICES)
    kinds = nn.Linear if adapter.all_linear else _CAN_BE_ADAPTED
    return isinstance(module, kinds) and adapter.takes(name, output)


def _nowhere(adapter: Adapter, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    if isinstance(adapter.targets, str):
        return ()
    ends = {name.rpartition(".")[2] for name in modules}
    if any(_holds_experts(name, module) for name, module in modules.items()):
        ends |= set(_EXPERT_MATRICES)
    return tuple(target for target in adapter.targets if target.rpartition(".")[2] not in ends)


def _holds_experts(name: str, module: nn.Module) -> bool:
    matrices = (parameter.dim() == _OF_EXPERTS for parameter in module.parameters(recurse=False))
    return name.endswith(".experts") and any(matrices)


def is_adapter(name: str) -> bool:
    """Return whether the module of that name is part of an adapter."""
    return _ADAPTER in name.split(".")
