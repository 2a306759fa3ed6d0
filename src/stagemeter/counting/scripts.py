"""TorchScript: modules that run as one, past Python, and kernels in them that run past the dispatcher, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

#: Nodes of a graph that do products out of the dispatcher's sight (torch/csrc/jit/passes/frozen_ops_to_mkldnn.cpp).
_UNSEEN = frozenset({"prim::mkldnn_convolution"})


def is_script(module: nn.Module) -> bool:
    """Whether a module is TorchScript: scripted, traced or frozen."""
    return isinstance(module, torch.jit.ScriptModule)


@cache
def unseen_products(module: Any) -> Counter[str]:
    """Products of a module of TorchScript that no counter sees, by the names under which they are listed."""
    graph = getattr(module, "inlined_graph", None)
    kinds = () if graph is None else (node.kind() for node in _nodes(graph))
    return Counter(kind.replace("::", ".") for kind in kinds if kind in _UNSEEN)


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
