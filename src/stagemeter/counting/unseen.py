"""Work that torch's dispatcher does not see, so that the report can name it.

- Triton's launcher, pybind extensions and numpy write to tensors without an operator. If ``torch.empty`` or the like
  made their result, an operator then reads memory that none wrote. A result of ``torch.zeros`` hides them.
- TorchScript runs modules past Python, and some of their kernels past the dispatcher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten

from stagemeter.counting.registry import is_of_torch

aten = torch.ops.aten

#: Name of such a kernel in the list of operators without a formula.
UNSEEN_KERNEL = "a kernel past torch's dispatcher"

#: Tensors that own their memory; subclasses may wrap others.
_PLAIN = (torch.Tensor, torch.nn.Parameter)
#: Number of followed storages at which freed ones are dropped.
_MANY = 1024
_MAKING = frozenset({aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted}) | {
    aten.new_empty,
    aten.new_empty_strided,
}
#: Operators that copy memory, written or not.
_COPYING = frozenset({aten._to_copy, aten.clone, aten.lift_fresh, aten._pin_memory})
#: Operators that read only sizes, devices and data types.
_OF_SHAPES = frozenset({
    aten.full_like, aten.ones_like, aten.zeros_like, aten.rand_like, aten.randn_like, aten.randint_like,
    aten.new_full, aten.new_ones, aten.new_zeros, aten.is_pinned, aten.is_same_size, aten.record_stream,
    aten.resize_, aten.resize_as_, aten.set_, aten.sym_numel, aten.sym_size, aten.sym_stride,
})  # fmt: skip


class UnseenKernels:
    """Memory that was made and not yet written to; none on the meta device."""

    def __init__(self) -> None:
        # Weak references free the memory, but keep its address from another storage.
        self._unwritten: dict[int, StorageWeakRef] = {}

    def saw(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
        """Follow an operator that ran, and return the number of unwritten tensors that it read."""
        packet = operator._overloadpacket
        if packet in _MAKING:
            self._follow(out)
            return 0
        if not self._unwritten or packet in _OF_SHAPES or operator.is_view:
            return 0
        if packet in _COPYING:
            if self._is_unwritten(args[0]):
                self._follow(out)
            return 0
        arguments = operator._schema.arguments
        given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
        unseen = 0
        for argument, value in given:
            # The schema of another library's operator may not declare its writes.
            writes = argument.is_write or not is_of_torch(operator)
            found = self.read(value)
            unseen += 0 if writes else found
        return unseen

    def read(self, value: Any) -> int:
        """Return the number of unwritten tensors in a value, and mark them as written."""
        unwritten = [item for item in tree_flatten(value)[0] if self._is_unwritten(item)]
        for tensor in unwritten:
            self._unwritten.pop(tensor.untyped_storage()._cdata, None)
        return len(unwritten)

    def _follow(self, made: torch.Tensor) -> None:
        if type(made) in _PLAIN and made.layout is torch.strided and made.device.type != "meta" and made.numel():
            storage = made.untyped_storage()
            if len(self._unwritten) >= _MANY:
                self._unwritten = {key: kept for key, kept in self._unwritten.items() if not kept.expired()}
            self._unwritten[storage._cdata] = StorageWeakRef(storage)

    def _is_unwritten(self, item: Any) -> bool:
        if not isinstance(item, torch.Tensor) or item.layout is not torch.strided or not item.numel():
            return False
        return type(item) in _PLAIN and torch._C._has_storage(item) and item.untyped_storage()._cdata in self._unwritten


#: Nodes of a graph that do products unseen (torch/csrc/jit/passes/frozen_ops_to_mkldnn.cpp).
_UNSEEN_NODES = frozenset({"prim::mkldnn_convolution"})


def is_script(module: nn.Module) -> bool:
    """Whether a module is TorchScript: scripted, traced or frozen."""
    return isinstance(module, torch.jit.ScriptModule)


@cache
def unseen_products(module: Any) -> Counter[str]:
    """Return the products of a TorchScript module that no counter sees, by their names in the report."""
    graph = getattr(module, "inlined_graph", None)
    kinds = () if graph is None else (node.kind() for node in _nodes(graph))
    return Counter(kind.replace("::", ".") for kind in kinds if kind in _UNSEEN_NODES)


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
