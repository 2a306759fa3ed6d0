"""Values on the meta device of the few tensors that decide what runs: token ids, masks, positions, grids of patches.

Some models read values: they split patches by the sizes in a tensor, or scatter embeddings to positions of a token id.
While `KnownValues` is on, tensors with given values keep them on the CPU beside their shapes, and so do tensors
computed from them alone. The code then reads the values of a real run. Weights and what follows from them stay shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)
from torch.utils._pytree import tree_flatten, tree_map

from stagemeter.counting.modes import DispatchMode, FunctionMode

aten = torch.ops.aten

#: Elements up to which values are kept: enough for the pixels of a batch of pages.
_LARGEST = 1 << 28
#: The same for a tensor larger than all of its operands, such as the mask of a long prompt. Rows with a one at each
#: index are not limited so: they assign patches to tokens, and decide how many tokens a page has.
_LARGEST_GROWN = 1 << 22
#: Elements up to which values are compared; larger tensors are equal if they are the same object.
_LARGEST_COMPARED = 1 << 16
#: Operators that make tensors from their arguments alone, the same in every run.
_MADE_OF_NOTHING = frozenset({
    aten.arange, aten.eye, aten.full, aten.full_like, aten.linspace, aten.logspace, aten.new_full,
    aten.new_ones, aten.new_zeros, aten.ones, aten.ones_like, aten.scalar_tensor, aten.tril_indices,
    aten.triu_indices, aten.zeros, aten.zeros_like,
})  # fmt: skip
#: Operators that make tensors of other tensors' shapes, with uninitialized memory.
_MADE_OF_SHAPES = frozenset({
    aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.resize, aten.resize_, aten.resize_as, aten.resize_as_,
})  # fmt: skip
#: Operators that overwrite a whole tensor.
_FILLING = frozenset({aten.fill_, aten.zero_})
_INDEXING = frozenset({aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_})


#: Python functions that make tensors of plain numbers, which the operator no longer shows.
_OF_NUMBERS = frozenset({torch.tensor, torch.as_tensor, torch.Tensor.new_tensor})


class KnownValues:
    """The known values of some tensors on the meta device while the block runs; may be entered again."""

    def __init__(self) -> None:
        self._exits: list[ExitStack] = []
        # By storage, so that views, and writes through them, share one set of values. References keep each storage
        # alive, so that its address is not given to another.
        self._known: dict[int, tuple[Any, torch.Tensor]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(FunctionMode(self.run_function))
            stack.enter_context(KnownValuesMode(self))
            self._exits.append(stack.pop_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.pop().__exit__(kind, error, trace)

    def give(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Set the values of a tensor on the meta device."""
        storage = tensor.untyped_storage()
        with _disable_current_modes():
            kept = torch.zeros(storage.nbytes() // tensor.element_size(), dtype=tensor.dtype, device="cpu")
            _seen_as(tensor, kept).copy_(value)
        self._known[storage._cdata] = (storage, kept)

    def forget(self, tensors: Iterable[torch.Tensor]) -> None:
        """Mark the values of some tensors as unknown, such as weights that are zeros before training."""
        for tensor in tensors:
            if torch._C._has_storage(tensor):
                self._known.pop(tensor.untyped_storage()._cdata, None)

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the values of a tensor, sharing memory with the kept ones; None if unknown."""
        if tensor.device.type != "meta":
            return tensor if tensor.device.type == "cpu" and tensor.numel() <= _LARGEST else None
        found = self._known.get(tensor.untyped_storage()._cdata) if torch._C._has_storage(tensor) else None
        if found is None or found[1].dtype != tensor.dtype:
            return None
        with _disable_current_modes():
            return _seen_as(tensor, found[1])

    def run_function(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a Python function of torch that is not an operator."""
        if func is torch.Tensor.tolist and (value := self.value_of(args[0])) is not None:
            return value.tolist()
        if func in _OF_NUMBERS and isinstance(args[-1] if args else kwargs["data"], (list, tuple)):
            # Such a list may hold tensors of one element each.
            args = (*args[:-1], tree_map(self._number, args[-1])) if args else args
        out = func(*args, **kwargs)
        if func is torch.Tensor.__getitem__ and isinstance(out, torch.Tensor):
            self._follow_lists(out, *args)
        if func is torch.nn.functional.one_hot and self.value_of(out) is None and out.numel() <= _LARGEST:
            self._follow_indices(out, *args, **kwargs)
        if func in _OF_NUMBERS and isinstance(out, torch.Tensor) and out.device.type == "meta":
            data = args[-1] if args else kwargs["data"]
            if not isinstance(data, torch.Tensor):
                with _disable_current_modes():
                    value = torch.tensor(data, dtype=out.dtype, device="cpu")
                self.give(out, value)
        return out

    def run_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that torch dispatched, and update the known values."""
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **kwargs)  # Its result is not known.
        packet = func._overloadpacket
        if (wanted := kwargs.get("device")) is not None and torch.device(wanted).type not in ("cpu", "meta"):
            # The device of weights and caches, which have no values here.
            kwargs = {**kwargs, "device": torch.device("meta")}
        if packet is aten.copy_ and args[0].device.type == "cpu" and (value := self.value_of(args[1])) is not None:
            return func(args[0], value, *args[2:])  # Seen by a counter, which follows memory that nobody wrote.
        if packet in _INDEXING:
            args = (args[0], self._whole_numbers(args[1]), *args[2:])
        if packet is aten.masked_select and self.value_of(args[0]) is None and args[0].shape == args[1].shape:
            # Select by positions, which follow from the mask's values.
            func, args = aten.index.Tensor, (args[0], self._whole_numbers([args[1]]))
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
        values = self._values((args, kwargs), tensors, func)
        if values is not None and _asks_for_values(func, args, kwargs):
            return self._answer(func, *values)
        args, kwargs = self._together(func, args, kwargs, tensors)
        out = func(*args, **kwargs)
        self._follow(func, args, kwargs, values, out)
        return out

    def _together(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[torch.Tensor]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the arguments on the meta device if one without values moves to the CPU, or meets an array there."""
        if not any(tensor.device.type == "meta" for tensor in tensors):
            return args, kwargs
        if func._overloadpacket is aten._to_copy and kwargs.get("device") == torch.device("cpu"):
            # Only shapes move. Reading values there fails as it does here.
            return args, {**kwargs, "device": torch.device("meta")}
        if func._schema.is_mutable or not any(_is_array(tensor) for tensor in tensors):
            return args, kwargs
        moved: tuple[Any, dict[str, Any]] = tree_map(
            lambda item: self._bare(item) if isinstance(item, torch.Tensor) and _is_array(item) else item,
            (args, kwargs),
        )
        return moved

    def _follow_lists(self, out: torch.Tensor, tensor: torch.Tensor, index: Any) -> None:
        """Keep the values at positions given as a list of numbers, which torch turns into a tensor unseen."""
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(part, list) for part in parts) or self.value_of(out) is not None:
            return
        if out.device.type == "meta" and (value := self.value_of(tensor)) is not None:
            with _disable_current_modes():
                self.give(out, value[index])

    def _follow_indices(self, out: torch.Tensor, tensor: torch.Tensor, num_classes: int = -1) -> None:
        """Keep the rows with a one at each index, which are larger than the indices."""
        if (value := self.value_of(tensor)) is not None:
            with _disable_current_modes():
                self.give(out, torch.nn.functional.one_hot(value, num_classes))

    def _number(self, item: Any) -> Any:
        """Return the number in a tensor of one element, where it is known; anything else as it is."""
        if isinstance(item, torch.Tensor) and item.dim() == 0 and (value := self.value_of(item)) is not None:
            return value.item()
        return item

    def _values(self, arguments: Any, tensors: Sequence[torch.Tensor], func: Any) -> tuple[Any, Any] | None:
        """Return the arguments with values in place of shapes; None where one has none."""
        packet = func._overloadpacket
        if not tensors and packet not in _MADE_OF_NOTHING:
            return None
        if packet in _MADE_OF_SHAPES or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        if any(type(tensor) is not torch.Tensor for tensor in tensors):
            return None  # Weights, and subclasses with rules of their own.
        unknown = [tensor for tensor in tensors if self.value_of(tensor) is None]
        if unknown and packet not in _MADE_OF_NOTHING and packet not in _FILLING:
            return None

        def value(item: Any) -> Any:
            if isinstance(item, torch.Tensor):
                known = self.value_of(item)
                # Only its shape matters, or it is overwritten.
                return torch.empty(item.shape, dtype=item.dtype, device="cpu") if known is None else known
            return torch.device("cpu") if item == torch.device("meta") else item

        if any(tensor.numel() > _LARGEST for tensor in unknown):
            return None
        with _disable_current_modes():
            real: tuple[Any, Any] = tree_map(value, arguments)
        return real

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        with _disable_current_modes():
            answer = func(*args, **kwargs)
        wanted = kwargs.get("device")
        if not isinstance(answer, (torch.Tensor, tuple, list)) or (wanted is not None and func in _MOVING):
            return answer
        return tree_map(lambda item: self._bare(item) if isinstance(item, torch.Tensor) else item, answer)

    def _bare(self, value: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():
            bare = torch.empty_like(value, device="meta")
        self.give(bare, value)
        return bare

    def _follow(self, func: Any, args: Any, kwargs: Any, values: tuple[Any, Any] | None, out: Any) -> None:
        """Compute the values of results; forget those that an unknown value overwrote."""
        results = [item for item in tree_flatten(out)[0] if isinstance(item, torch.Tensor)]
        meta = [tensor for tensor in results if tensor.device.type == "meta"]
        if values is not None and meta and all(tensor.numel() <= _limit(args, kwargs) for tensor in meta):
            if func.is_view:
                return
            try:
                with _disable_current_modes():
                    flat, _ = tree_flatten(func(*values[0], **values[1]))
            except NotImplementedError:
                # Without a kernel on the CPU the result stays a shape, and overwritten values are unknown.
                self._forget_written(func, args, kwargs)
                return
            real = [item for item in flat if isinstance(item, torch.Tensor)]
            for tensor, value in zip(results, real, strict=True):
                # Known values were already updated in place.
                if tensor.device.type == "meta" and self.value_of(tensor) is None and _is_whole(tensor):
                    self.give(tensor, value)
            return
        self._forget_written(func, args, kwargs)

    def _forget_written(self, func: Any, args: Any, kwargs: Any) -> None:
        arguments = func._schema.arguments
        given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
        written = [given.get(a.name) for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        tensors = (item for item in tree_flatten(written)[0] if isinstance(item, torch.Tensor))
        self.forget(tensor for tensor in tensors if tensor.device.type == "meta")

    def _whole_numbers(self, indices: Any) -> Any:
        """Return indices with each mask of known values replaced by the positions where it is true."""
        places: list[torch.Tensor | None] = []
        for index in indices:
            mask = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            value = self.value_of(index) if mask and index.device.type == "meta" else None
            if value is None:
                places.append(index)
            else:
                with _disable_current_modes():
                    found = value.nonzero().unbind(1)
                places += [self._bare(place.contiguous()) for place in found]
        return places


def _is_array(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the CPU, not a weight, and not a single number, which mixes with every device."""
    weight = isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)
    return tensor.device.type == "cpu" and tensor.dim() > 0 and not weight


class KnownValuesMode(DispatchMode):
    """A dispatch mode that passes operators to `KnownValues`."""

    def __init__(self, known: KnownValues) -> None:
        super().__init__(lambda mode, func, args, kwargs: known.run_operator(func, args, kwargs))
        self.known = known


def known_value(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the values of a tensor on the meta device from any active block; None if unknown."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, KnownValuesMode) and (value := mode.known.value_of(tensor)) is not None:
            return value
    return None


def is_small_index(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds a few whole numbers on the CPU, such as the lengths of windows."""
    if type(tensor) is not torch.Tensor or tensor.device.type != "cpu" or tensor.numel() > _LARGEST_COMPARED:
        return False
    # Writes to a tensor of torch's inference mode leave no trace.
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_inference())


def comparable_value(tensor: torch.Tensor) -> Any:
    """Return the values of a tensor, as `known_value` does, in a comparable form."""
    value = tensor if is_small_index(tensor) else known_value(tensor)
    if value is None:
        return None
    if value.numel() > _LARGEST_COMPARED:
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor._version
    with _disable_current_modes():
        return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def onlookers() -> int:
    """Return the number of other active dispatch modes: a second counter would miss operators that do not run."""
    return sum(not isinstance(mode, KnownValuesMode) for mode in _get_current_dispatch_mode_stack())


_MOVING = frozenset({aten._to_copy.default})


def _asks_for_values(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator needs values, so that the known ones answer it."""
    tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
    if not any(tensor.device.type == "meta" for tensor in tensors):
        return False
    if func in _MOVING:
        wanted = kwargs.get("device")
        return wanted is not None and torch.device(wanted).type != "meta"
    if func._overloadpacket in _INDEXING:
        return False
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _limit(args: Any, kwargs: Any) -> int:
    tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
    return min(_LARGEST, max([_LARGEST_GROWN, *(tensor.numel() for tensor in tensors)]))


def _is_whole(tensor: torch.Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _seen_as(tensor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(kept, tensor.size(), tensor.stride(), tensor.storage_offset())
