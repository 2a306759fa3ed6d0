"""A training step's FLOPs by stage, each of its modules run apart from the model: independent of the package.

A pass of the whole model tells what each module got, which of its inputs had a gradient to give back, and at which of
its outputs a gradient arrived. Each call is then repeated alone on these inputs, forward and backward, under torch's
own counter. No tracker of modules takes part: autograd runs what this module alone made necessary.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from brute_force import BruteForce
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode


class _Calls:
    """The calls of some modules in one step, with their inputs, and the places of outputs that got a gradient."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.calls: list[tuple[nn.Module, Any, list[int]]] = []
        self._handles = []
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))
        self._running: list[tuple[nn.Module, Any]] = []

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append((module, _fresh((args, kwargs))))

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        called, given = self._running.pop()
        assert called is module
        reached: list[int] = []
        for place, tensor in enumerate(tree_flatten(out)[0]):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda gradient, place=place: reached.append(place))
        self.calls.append((module, given, reached))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _fresh(tree: Any) -> Any:
    """Copies that begin a graph of their own, with a gradient where the originals have one; caches are empty yet."""
    return tree_map(
        lambda x: x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else deepcopy(x),
        tree,
    )


def _flops(counter: Any) -> int:
    return 2 * counter.macs if isinstance(counter, BruteForce) else counter.get_total_flops()


def _called(module: nn.Module) -> list[nn.Module]:
    """The module, or the members of a list of modules, which is not called itself."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def flops_apart(
    model: nn.Module, batch: Mapping[str, Any], stages: Mapping[str, Sequence[str]], products: bool = False
) -> tuple[dict[str, int], dict[str, int]]:
    """FLOPs of a step by stage, and of its forward pass alone, on real numbers; a stage names its modules.

    With `products`, they come from the products one by one: torch's counter knows no products of experts, and counts
    too much in the backward pass of a grouped convolution.
    """
    model.train()
    own = {stage: [m for name in names for m in _called(model.get_submodule(name))] for stage, names in stages.items()}
    recorded = _Calls(module for modules in own.values() for module in modules)
    model(**batch).loss.backward()
    recorded.remove()
    model.zero_grad()
    step, forward = dict.fromkeys(stages, 0), dict.fromkeys(stages, 0)
    for module, (args, kwargs), reached in recorded.calls:
        (stage,) = (name for name, modules in own.items() if module in modules)
        with BruteForce() if products else FlopCounterMode(display=False) as counter:
            flat = tree_flatten(module(*args, **kwargs))[0]
            forward[stage] += _flops(counter)
            outputs = [flat[place] for place in sorted(set(reached))]
            if outputs:
                torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        step[stage] += _flops(counter)
    model.zero_grad()
    return step, forward
