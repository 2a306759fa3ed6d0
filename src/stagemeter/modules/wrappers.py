"""What people wrap modules in: taken off where it only hides them, kept where it changes what runs."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from stagemeter.core.errors import StagemeterError

#: Names that wrappers put between a module and what they wrap: torch.compile, FSDP, activation checkpointing.
_WRAPPER_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(model: Any) -> nn.Module:
    """Take a model out of ``torch.compile``, ``torch.export`` and data parallelism.

    Parameters
    ----------
    model : torch.nn.Module or torch.export.ExportedProgram
        The model.

    Returns
    -------
    torch.nn.Module
        The module that does the work: its names are those of the model as it was written. Sharded modules (FSDP) stay
        as they are, since a shard is not the module.

    Raises
    ------
    StagemeterError
        If it is no module.
    """
    if isinstance(model, torch.export.ExportedProgram):
        if _attends_by_function(model.graph_module):
            # torch cannot run the functions of scores of an unflattened program: all is one module then.
            return model.module(check_guards=False)
        return torch.export.unflatten(model)
    if not isinstance(model, nn.Module):
        raise StagemeterError(
            f"model is a {type(model).__name__}: give a torch.nn.Module, or what torch.export.export returned"
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
    """Set a model to training or to inference; modules of an exported program refuse to be, and stay as exported."""
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
    # Not imported: it takes most of a second, and who has such a module has imported it.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())


def plain_name(name: str) -> str:
    """Name a module as its author did, without what wrappers put between."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_NAMES)
