"""Memory that no operator was seen to write to, and that one reads: a kernel past torch's dispatcher was at work.

Triton's launcher, pybind extensions and numpy write to tensors without an operator. Where their result was made by
``torch.empty`` and its like, that shows once the result is read. A result that was zeros before does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
