"""Work that torch's dispatcher does not see, so that the report can name it.

- Triton's launcher, pybind extensions and numpy write to tensors without an operator. If ``torch.empty`` or the like
  made their result, an operator then reads memory that none was seen to write to. A result of ``torch.zeros`` hides
  them.
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

#: How such a kernel is listed, beside operators without a formula.
UNSEEN_KERNEL = "a kernel past torch's dispatcher"

#: Tensors whose memory is their own; subclasses may wrap others.
_PLAIN = (torch.Tensor, torch.nn.Parameter)
#: Storages that are followed before those that are gone are left out.
_MANY = 1024
_MAKING = frozenset({aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted}) | {
    aten.new_empty,
    aten.new_empty_strided,
}
#: What takes over what is in memory, written or not.
_COPYING = frozenset({aten._to_copy, aten.clone, aten.lift_fresh, aten._pin_memory})
#: What asks for sizes, places and data types alone.
_OF_SHAPES = frozenset({
    aten.full_like, aten.ones_like, aten.zeros_like, aten.rand_like, aten.randn_like, aten.randint_like,
    aten.new_full, aten.new_ones, aten.new_zeros, aten.is_pinned, aten.is_same_size, aten.record_stream,
    aten.resize_, aten.resize_as_, aten.set_, aten.sym_numel, aten.sym_size, aten.sym_stride,
})  # fmt: skip


class UnseenKernels:
    """Follow which memory was made and written to; none on the meta device, where nothing can be written."""

    def __init__(self) -> None:
        # Weak references, which keep an address from being given to another storage and no memory.
        self._unwritten: dict[int, StorageWeakRef] = {}

    def saw(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
        """Follow an operator that ran; return how many tensors it read that nothing was seen to write to.

        Parameters
        ----------
        operator : torch._ops.OpOverload
            As a dispatch mode receives it.
        args, kwargs, out
            Its arguments and result.
        """
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
            # What an operator of another library does to its operands its schema need not say.
            writes = argument.is_write or not is_of_torch(operator)
            found = self.read(value)
            unseen += 0 if writes else found
        return unseen

    def read(self, value: Any) -> int:
        """Take what is read for written from now on; return how many of its tensors nothing was seen to write to."""
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
    """Products of a module of TorchScript that no counter sees, by the names under which they are listed."""
    graph = getattr(module, "inlined_graph", None)
    kinds = () if graph is None else (node.kind() for node in _nodes(graph))
    return Counter(kind.replace("::", ".") for kind in kinds if kind in _UNSEEN_NODES)


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
