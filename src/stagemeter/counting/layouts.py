"""Operands that are not dense tensors: sparse tensors, and nested ones of several sequences.

- **Sparse** (COO, CSR, CSC, BSR, BSC, 2:4 semi-structured): a product costs one multiply-accumulate for each stored
  element and each element of the other operand that it meets. All stored elements count, also zeros.
- **Nested** (jagged and strided): products are within each sequence, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat, zip_longest
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nested._internal.nested_tensor import NestedTensor
from torch.sparse import SparseSemiStructuredTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from stagemeter.counting.registry import Rule, is_of_torch

aten = torch.ops.aten

#: Operators of two factors, which may be sparse: the positions of the factors among the arguments.
_FACTORS: dict[Any, tuple[int, int]] = {
    aten.linear: (0, 1),
    aten.mm: (0, 1),
    aten.hspmm: (0, 1),
    aten._sparse_sparse_matmul: (0, 1),
    aten.bmm: (0, 1),
    aten.mv: (0, 1),
    aten.addmm: (1, 2),
    aten._addmm_activation: (1, 2),
    aten._sparse_addmm: (1, 2),
    aten.sspaddmm: (1, 2),
    aten.addmv: (1, 2),
    aten.baddbmm: (1, 2),
}
#: Operators whose formulas handle sparse operands.
_MADE_FOR_SPARSE = frozenset({aten.sparse_sampled_addmm})
_SPARSE = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})
#: Operators that do a separate product for each sequence; the others with a formula take all rows in one block.
_BY_SEQUENCE = frozenset({
    aten.bmm, aten.baddbmm, aten.matmul, aten.matmul_backward, aten.scaled_dot_product_attention,
    aten._scaled_dot_product_attention_math, aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_cudnn_attention, aten._native_multi_head_attention, aten._transformer_encoder_layer_fwd,
})  # fmt: skip
_BY_ROW = frozenset({aten.linear, aten.linear_backward})
#: Half of the elements of a 2:4 semi-structured matrix are stored.
_SEMI_STRUCTURED_SHARE = 2


class UncountableError(LookupError):
    """A formula that does not apply to operands of this layout."""


class LengthsUnknownError(NotImplementedError):
    """A count that depends on unknown lengths of sequences, so that the pass has to run on real tensors."""


class SparseShape(tuple[int, ...]):
    """The shape of a sparse tensor, and the number of its `stored` elements."""

    stored: int

    def __new__(cls, shape: Sequence[int], stored: int) -> SparseShape:
        """Make a shape that also holds the number of stored elements."""
        made = super().__new__(cls, shape)
        made.stored = stored
        return made


class Call(NamedTuple):
    """The arguments of a formula: shapes in place of tensors, and the shape of the result."""

    args: Any
    kwargs: Any
    out: Any


def is_jagged(tensor: Any) -> bool:
    """Whether a tensor is nested in the jagged layout, which is a class of its own in Python."""
    return isinstance(tensor, NestedTensor)


def is_by_sequence(packet: Any) -> bool:
    """Whether an operator of nested tensors does a separate product for each sequence."""
    return packet in _BY_SEQUENCE


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense: strided, not nested, not sparse."""
    return tensor.layout is torch.strided and not tensor.is_nested and not is_sparse(tensor)


def is_sparse(tensor: torch.Tensor) -> bool:
    """Whether only some elements of a tensor are stored."""
    return tensor.layout in _SPARSE or isinstance(tensor, SparseSemiStructuredTensor)


def elements_of(tensor: Any) -> torch.Tensor:
    """Return the plain tensor that holds the elements of a tensor of any layout."""
    if is_plain(tensor):
        elements: torch.Tensor = tensor
        return elements
    with _disable_current_modes():
        if isinstance(tensor, SparseSemiStructuredTensor):
            packed: Any = tensor.packed if tensor.packed is not None else tensor.packed_t
            elements = packed
        elif is_jagged(tensor):
            elements = tensor._values
        elif tensor.layout is torch.sparse_coo:
            elements = tensor._values()
        else:
            elements = tensor.values() if tensor.is_nested or is_sparse(tensor) else tensor
    return elements


def stored_elements(tensor: torch.Tensor) -> int:
    """Return the number of stored elements of a tensor."""
    if isinstance(tensor, SparseSemiStructuredTensor):
        return tensor.numel() // _SEMI_STRUCTURED_SHARE
    return elements_of(tensor).numel()


def calls(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> list[Call]:
    """Return the calls of a formula: one, or one for each sequence of nested operands."""
    nested = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.is_nested]
    if not nested:
        return [Call(*tree_map(shape_of, (tuple(args), dict(kwargs), out)))]
    if packet in _BY_ROW or _is_by_one_matrix(packet, args):
        return [Call(*tree_map(_rows, (tuple(args), dict(kwargs), out)))]
    if packet not in _BY_SEQUENCE:
        raise UncountableError(f"{packet} has no formula for nested tensors")
    sequences = len(_sizes(nested[0]))
    each = [_sequences(value, sequences) for value in (*args, *kwargs.values(), out)]
    return [
        Call(tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) : -1], strict=True)), values[-1])
        for values in zip(*each, strict=True)
    ]


def of_stored(packet: Any, args: Sequence[Any], shapes: Sequence[Any], macs: int) -> int:
    """Return the multiply-accumulates of a product whose factors may be sparse; `macs` is the cost of dense ones."""
    if not any(isinstance(shape, SparseShape) for shape in shapes) or packet in _MADE_FOR_SPARSE:
        return macs
    if packet not in _FACTORS:
        if not is_of_torch(packet):
            return macs  # A library's own formula handles its own operands.
        raise UncountableError(f"{packet} has no formula for sparse tensors")
    left, right = _FACTORS[packet]
    sparse = [place for place in (left, right) if isinstance(shapes[place], SparseShape)]
    if len(sparse) == len((left, right)):
        return _meetings(args[left], args[right])
    for place in sparse:
        # Every element of a factor takes part in the same number of products.
        elements = prod(shapes[place])
        macs = macs // elements * shapes[place].stored if elements else 0
    return macs


def matmul_macs(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the multiply-accumulates of ``matmul``: stacks of matrices, either of which may be repeated."""
    stacks = zip_longest(reversed(left[:-2]), reversed(right[:-2]), fillvalue=1)
    return prod(map(max, stacks)) * prod(left[-2:]) * right[-1]


def _meetings(left: torch.Tensor, right: torch.Tensor) -> int:
    """Return the number of pairs of stored elements that a product of two sparse matrices multiplies."""
    dimensions = 2
    if left.device.type == "meta" or left.dim() != dimensions or isinstance(left, SparseSemiStructuredTensor):
        raise UncountableError("the positions of elements in two sparse tensors are unknown")
    with _disable_current_modes():
        columns, rows = _coordinates(left)[1], _coordinates(right)[0]
        inner = left.shape[1]
        return int((columns.bincount(minlength=inner) * rows.bincount(minlength=inner)).sum())


def _coordinates(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor if tensor.layout is torch.sparse_coo else tensor.to_sparse_coo())._indices()


def shape_of(value: Any) -> Any:
    """Return the shape of a tensor, and anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    return SparseShape(value.shape, stored_elements(value)) if is_sparse(value) else value.shape


def _rows(value: Any) -> Any:
    """Return the shape of a tensor, or of all rows of a nested one in one block."""
    if not (isinstance(value, torch.Tensor) and _is_nested(value)):
        return shape_of(value)
    jagged: Any = value
    if is_jagged(value) and jagged._lengths is None:
        return jagged._values.shape
    sizes = _sizes(value)
    return (sum(prod(size[:-1]) for size in sizes), sizes[0][-1] if sizes else 0)


def _sequences(value: Any, count: int) -> Iterator[Any]:
    """Yield the shape of each sequence's part of a value, as a batch of one."""
    if not isinstance(value, torch.Tensor):
        return repeat(value, count)
    if value.is_nested:
        return iter([(1, *size) for size in _sizes(value)])
    batched = value.dim() > 2 and value.shape[0] == count
    return repeat((1, *value.shape[1:]) if batched else tuple(value.shape), count)


def _is_by_one_matrix(packet: Any, args: Sequence[Any]) -> bool:
    """Whether all sequences are multiplied by the same matrix."""
    return packet is aten.matmul and isinstance(args[1], torch.Tensor) and args[1].dim() == len(("rows", "columns"))


def nested_sizes(tensor: torch.Tensor) -> list[list[int]] | None:
    """Return the sizes of each sequence of a nested tensor; None where they are not known."""
    try:
        return _sizes(tensor)
    except LengthsUnknownError:
        return None


def _sizes(tensor: Any) -> list[list[int]]:
    with _disable_current_modes():
        if not is_jagged(tensor):
            sizes: list[list[int]] = tensor._nested_tensor_size().tolist()
            return sizes
        lengths = tensor._offsets.diff() if tensor._lengths is None else tensor._lengths
        if lengths.device.type == "meta":
            raise LengthsUnknownError("lengths of jagged sequences are values, which shapes do not have")
        ragged = tensor._ragged_idx
        shape = list(tensor.shape)
        return [[*shape[1:ragged], length, *shape[ragged + 1 :]] for length in lengths.tolist()]


def _matmul(left: Any, right: Any, *, out: Any) -> int:
    return matmul_macs(left, right)


def _matmul_backward(gradient: Any, left: Any, right: Any, mask: Sequence[bool], *, out: Any) -> int:
    return matmul_macs(left, right) * sum(map(bool, mask))


def _linear_backward(x: Any, gradient: Any, weight: Any, mask: Sequence[bool], *, out: Any) -> int:
    # The gradient of the bias is a sum, which costs nothing.
    macs: int = prod(x) * weight[0]
    return macs * sum(map(bool, mask[:2]))


def _is_nested(tensor: Any) -> bool:
    return bool(tensor.is_nested)


#: Operators that torch decomposes for dense operands, and runs as one for nested operands.
NESTED_RULES: dict[Any, Rule] = {
    aten.matmul: Rule(_matmul, "matmul"),
    aten.matmul_backward: Rule(_matmul_backward, "matmul_backward", operands=3),
    aten.linear_backward: Rule(_linear_backward, "linear_backward", operands=3),
}
