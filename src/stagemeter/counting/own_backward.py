"""The products that a function with a backward pass of its own computes again in it.

A ``torch.autograd.Function`` may save its operands in place of its result, and compute that again in its backward
pass. TRL's output head does so with logits (``trl/kernels/chunked_logprob.py``). Such a product is work beyond the
model's. It shows in that the function's forward pass ran the same operator on the same operands.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from stagemeter.counting.attention_nodes import next_number


class OwnBackward:
    """The products that ran without a graph after each node: those of its function's forward pass, if it has one."""

    def __init__(self) -> None:
        self._first = next_number()
        self._ran: set[Hashable] = set()
        #: Storages of copies, by their addresses, with what they are copies of.
        self._copies: dict[int, Hashable] = {}
        # Weak references leave memory to be freed, but keep an address from being given to another storage.
        self._storages: dict[int, StorageWeakRef] = {}

    def follow(self, source: torch.Tensor, copy: torch.Tensor) -> None:
        """Treat a copy in another data type, or at another place, as what it was made from."""
        if self._is_hidden(None) and _is_plain(source) and _is_plain(copy):
            self._copies[self._address(copy)] = self._identity(source)

    def runs_again(self, node: Any, name: str, operands: Sequence[Any]) -> bool:
        """Return whether a product of a backward pass repeats one of its forward pass; record those of forward passes.

        `node` is None in a forward pass.
        """
        if self._is_hidden(node):
            self._ran.add((next_number() - 1, name, *map(self._identity, operands)))
            return False
        if not self._ran or not isinstance(node, torch.autograd.function.BackwardCFunction):
            return False
        return (node._sequence_nr(), name, *map(self._identity, operands)) in self._ran

    def _is_hidden(self, node: Any) -> bool:
        """Whether what runs may be the forward pass of such a function, whose node is then the last one."""
        return node is None and not torch.is_grad_enabled() and next_number() > self._first

    def _identity(self, operand: Any) -> Hashable:
        if not isinstance(operand, torch.Tensor) or not _is_plain(operand):
            return None
        address = self._address(operand)
        view = (tuple(operand.shape), operand.stride(), operand.storage_offset())
        version = 0 if operand.is_inference() else operand._version
        return self._copies.get(address, address), view, version

    def _address(self, tensor: torch.Tensor) -> int:
        storage = StorageWeakRef(tensor.untyped_storage())
        return int(self._storages.setdefault(storage.cdata, storage).cdata)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has one storage and strides; sparse and nested ones do not."""
    return tensor.layout is torch.strided and not tensor.is_nested and torch._C._has_storage(tensor)
