"""Wrappers of modules: removed where they only hide a module, kept where they change what runs."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from stagemeter.core.errors import StagemeterError

#: Parts of names that wrappers insert: torch.compile, FSDP, activation checkpointing.
_WRAPPER_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(model: Any) -> nn.Module:
    """Unwrap a model from ``torch.compile``, ``torch.export`` and data parallelism, or raise StagemeterError.

    The result has the names of the model's source. FSDP's modules stay as they are, since a shard is not the module.
    """
    if isinstance(model, torch.export.ExportedProgram):
        if _attends_by_function(model.graph_module):
            # torch cannot run the score functions of an unflattened program: it stays one module.
            return model.module(check_guards=False)
        return torch.export.unflatten(model)
    if not isinstance(model, nn.Module):
        raise StagemeterError(
            f"model: a {type(model).__name__} is no module. Give a torch.nn.Module, or a program of torch.export"
        )
    inner: nn.Module = model
    while True:
        if isinstance(inner, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = inner.module
        elif isinstance(wrapped := getattr(inner, "_orig_mod", None), nn.Module):
            inner = wrapped
        else:
            return inner


def _attends_by_function(graph: torch.fx.GraphModule) -> bool:
    """Whether a graph, or a graph inside of it, holds ``flex_attention``."""
    graphs = (module.graph for module in graph.modules() if isinstance(module, torch.fx.GraphModule))
    return any(node.target is torch.ops.higher_order.flex_attention for found in graphs for node in found.nodes)


def set_training(model: nn.Module, train: bool) -> None:
    """Set a model to training or to inference; exported modules cannot change, and stay as exported."""
    refusing = {
        module: vars(module).pop("train")
        for module in model.modules()
        if isinstance(module, torch.fx.GraphModule) and "train" in vars(module)
    }
    try:
        model.train(train)
    finally:
        for module, refuses in refusing.items():
            vars(module)["train"] = refuses


def is_sharded(model: nn.Module) -> bool:
    """Whether modules are wrapped by FSDP, whose parameters are the shards of this process."""
    # Not imported: it takes most of a second, and a program with such a module has imported it.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())


def plain_name(name: str) -> str:
    """Return the name of a module without the parts that wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_NAMES)
