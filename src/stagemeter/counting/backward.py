"""Whose work a backward pass does.

Autograd numbers the nodes of its graph as the forward pass makes them. The numbers that were given while a module ran
are those of its nodes, so that an operator of the backward pass is known by the number of the node that runs it.
"""

from __future__ import annotations

from bisect import bisect_right

import torch


class NodeOwners:
    """Which module made which node of the autograd graph.

    Notes
    -----
    The numbers are those of one thread: a model whose forward pass runs in several is not told apart.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._modules: list[str] = []

    def mark(self, module: str) -> None:
        """Say that nodes made from now on are of a module."""
        number = torch._C._autograd._get_sequence_nr()
        if self._starts and self._starts[-1] == number:
            self._modules[-1] = module
        else:
            self._starts.append(number)
            self._modules.append(module)

    @staticmethod
    def runs_again() -> bool:
        """Whether activation checkpointing runs part of a forward pass again: with gradients, in a backward pass."""
        return torch.is_grad_enabled() and torch._C._current_autograd_node() is not None

    def running(self) -> str:
        """Name the module whose node a backward pass runs now; empty where there is none, or nobody made it."""
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        place = bisect_right(self._starts, node._sequence_nr()) - 1
        return self._modules[place] if place >= 0 else ""
