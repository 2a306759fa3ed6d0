"""The module that an operator belongs to, in a forward and in a backward pass.

In a forward pass, hooks follow the module that runs. Autograd numbers the nodes of its graph in order, so each module
has the numbers that were given while it ran. In a backward pass, the number of the running node names the module.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from stagemeter.counting.modes import calls_followed


class Attribution:
    """The module whose work runs now.

    `names` maps each module to the first name that leads to it. Modules must run in one thread, since autograd numbers
    the nodes of each thread separately.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.names: dict[nn.Module, str] = {}
        if model is not None:
            self.names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._again: list[bool] = []
        #: The first number of each run of nodes with one module, and the names of these modules.
        self._starts: list[int] = []
        self._owners: list[str] = []

    @contextmanager
    def followed(self, entered: Callable[[nn.Module], None]) -> Iterator[None]:
        """Follow which module runs, by global hooks; `entered` takes each module before it runs."""

        def enter(module: nn.Module) -> None:
            entered(module)
            if self.name_of(module) is not None:
                self._running.append(module)
                self._again.append(torch.is_grad_enabled() and torch._C._current_autograd_node() is not None)
                self._own_nodes(self.names[module])

        def leave(module: nn.Module) -> None:
            if self._running and module is self._running[-1]:
                self._running.pop()
                self._again.pop()
                self._own_nodes(self.module())

        # Hooks run after errors too, so that a caught error does not leave a module running.
        with calls_followed(enter, leave):
            yield

    def name_of(self, module: nn.Module) -> str | None:
        """Return the name of a module; None for one outside of the model. Without a model, modules need no hash."""
        return self.names.get(module) if self.names else None

    def module(self) -> str:
        """Return the name of the module whose work runs now; empty if unknown."""
        if self._running:
            return self.names[self._running[-1]]
        node = torch._C._current_autograd_node()
        place = -1 if node is None else bisect_right(self._starts, node._sequence_nr()) - 1
        return self._owners[place] if place >= 0 else ""

    def runs_again(self) -> bool:
        """Whether activation checkpointing runs part of a forward pass again: with gradients, in a backward pass.

        So does the backward pass of a gradient that has a gradient itself (``create_graph``). Unlike checkpointing, it
        enters no module, keeps tensors as usual, and its nodes are torch's own (torch/utils/checkpoint.py).
        """
        if self._again and self._again[-1]:
            return True
        node = torch._C._current_autograd_node()
        if node is None or not torch.is_grad_enabled():
            return False  # Functions with a backward pass of their own run without gradients.
        keeps = torch._C._autograd._top_saved_tensors_default_hooks(True)
        return keeps is not None or isinstance(node, torch.autograd.function.BackwardCFunction)

    def is_causal(self) -> bool:
        """Whether the module that runs declares its attention causal."""
        return bool(self._running) and getattr(self._running[-1], "is_causal", False) is True

    def is_attention(self) -> bool:
        """Whether the running module is attention: it has the flag ``is_causal``, as in transformers."""
        return bool(self._running) and isinstance(getattr(self._running[-1], "is_causal", None), bool)

    def _own_nodes(self, module: str) -> None:
        """Assign the nodes made from now on to a module."""
        number = torch._C._autograd._get_sequence_nr()
        if self._starts and self._starts[-1] == number:
            self._owners[-1] = module
        else:
            self._starts.append(number)
            self._owners.append(module)
