"""How many multiply-accumulates each operator of torch performs, from the shapes of its operands.

A formula is a function of the operator's own arguments, with every tensor replaced by its shape, plus ``out``: the
shape of the result. It returns multiply-accumulates. What an operator reads and writes follows from its operands and
needs no formula, except where an operator does not touch all of an operand; such formulas say so by ``reads``.

Conventions, and where they come from:

- a product of (m, k) by (k, n) is ``m * k * n`` multiply-accumulates;
- a convolution multiplies its filter at every output position, padding included, as torch's FlopCounterMode counts
  (torch/utils/flop_counter.py, ``conv_flop_count``); a transposed one at every input position;
- a grouped product does one row of the left operand against one expert's matrix;
- formulas count products of the operands' own numbers: the counter multiplies by `REAL_PRODUCTS` where these are
  complex.

Attention and fused kernels have theirs in `stagemeter.counting.kernels`. Operators whose cost is zero by convention
are in `stagemeter.counting.zero_cost`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch

aten = torch.ops.aten

#: Real multiply-accumulates of a complex one: (a + bi)(c + di) = (ac - bd) + (ad + bc)i, 8 FLOPs with the sum.
REAL_PRODUCTS = 4

Shape = Sequence[int]
#: Takes an operator's arguments with shapes in place of tensors, and ``out``; returns multiply-accumulates.
Formula = Callable[..., int]
#: Takes the operator's shapes; returns how many elements of each tensor operand (in order) are read.
ReadRule = Callable[..., dict[int, int]]
FormulaType = TypeVar("FormulaType", bound=Formula)


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operator is counted.

    Attributes
    ----------
    formula : callable
        Multiply-accumulates from shapes.
    name : str
        Name under which the operator is reported.
    writes_first_only : bool
        Whether only the first result is data; attention kernels also return bookkeeping such as the log-sum-exp.
    operands : int or None
        How many leading arguments are data; the others (saved statistics, offsets) are bookkeeping. None: all.
    reads : callable or None
        Elements read of some operands, by position, where an operator does not read all of them.
    attention : bool
        Whether the operator is a whole attention: query, key and value come first.
    causal_formula : callable or None
        The same as `formula` with causal self-attention halved; None where the counter finds that out by itself.
    by_name : bool
        Whether formulas get all arguments by the names of the operator's schema, and of a vector of integers, such as
        the places where sequences begin, its numbers in place of its shape. A formula that raises LookupError says that
        the count is not known: the operator is listed as one without a formula.
    """

    formula: Formula
    name: str
    writes_first_only: bool = False
    operands: int | None = None
    reads: ReadRule | None = None
    attention: bool = False
    causal_formula: Formula | None = None
    by_name: bool = False


#: By the operator's whole name, such as ``aten::mm``: a library may not be imported yet when its formula is registered.
_RULES: dict[str, Rule] = {}


def register_formula(
    *operators: Any,
    name: str | None = None,
    writes_first_only: bool = False,
    operands: int | None = None,
    reads: ReadRule | None = None,
    attention: bool = False,
    causal_formula: Formula | None = None,
    by_name: bool = False,
) -> Callable[[FormulaType], FormulaType]:
    """Register a formula for some operators, as a decorator.

    Parameters
    ----------
    *operators : torch._ops.OpOverloadPacket or str
        For example ``torch.ops.aten.mm``, or an operator of your own library; ``"library::name"`` for one whose library
        may not be imported yet.
    name : str, optional
        Name in reports. Default: the operator's own name without its namespace and leading underscores.
    writes_first_only, operands, reads, attention, causal_formula, by_name
        See `Rule`.

    Returns
    -------
    callable
        The decorator; it returns the formula unchanged.

    Raises
    ------
    TypeError
        If something other than an operator packet is given, such as ``torch.mm`` or one overload.
    ValueError
        If an operator has a formula already; `unregister_formula` removes it.
    """
    keys = [_key(operator) for operator in operators]
    for operator, key in zip(operators, keys, strict=True):
        if key in _RULES:
            raise ValueError(f"{operator} has a formula already; unregister_formula({operator}) removes it first")

    def register(formula: FormulaType) -> FormulaType:
        for key in keys:
            _RULES[key] = Rule(
                formula=formula,
                name=name or _default_name(key),
                writes_first_only=writes_first_only,
                operands=operands,
                reads=reads,
                attention=attention,
                causal_formula=causal_formula,
                by_name=by_name,
            )
        return formula

    return register


def rule_for(operator: Any, formula: Formula) -> Rule:
    """Return how an operator is counted by a formula that is not registered.

    Raises
    ------
    TypeError
        If something other than an operator packet is given.
    """
    return Rule(formula=formula, name=_default_name(_key(operator)))


def _key(operator: Any) -> str:
    if isinstance(operator, str) and "::" in operator:
        return operator
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        raise TypeError(
            f"a formula is for an operator such as torch.ops.aten.mm, not {operator!r} of type "
            f"{type(operator).__name__}"
        )
    return str(operator._qualified_op_name)


def _default_name(key: str) -> str:
    return key.rpartition("::")[2].lstrip("_")


def unregister_formula(operator: Any) -> Rule:
    """Remove the formula of an operator and return how it was counted.

    Raises
    ------
    KeyError
        If the operator has no formula.
    """
    key = _key(operator)
    if key not in _RULES:
        raise KeyError(f"{operator} has no formula")
    return _RULES.pop(key)


def is_of_torch(operator: Any) -> bool:
    """Whether an operator, or one of its overloads, is of torch's own library, ``aten``."""
    packet = getattr(operator, "_overloadpacket", operator)
    return str(packet._qualified_op_name).startswith("aten::")


def rule_of(operator: Any) -> Rule | None:
    """Return how an operator is counted, or None if it has no formula. One that works in place is counted alike."""
    key = str(operator._qualified_op_name)
    rule = _RULES.get(key)
    if rule is None and is_of_torch(operator) and key.endswith("_") and not key.endswith("__"):
        return _RULES.get(key[:-1])
    return rule


def matrix_macs(left: Shape, right: Shape) -> int:
    """Multiply-accumulates of an (m, k) by (k, n) product."""
    rows, inner = left
    columns = right[1]
    return rows * inner * columns


def batched_matrix_macs(left: Shape, right: Shape) -> int:
    """Multiply-accumulates of a (b, m, k) by (b, k, n) product."""
    batch, rows, inner = left
    return batch * rows * inner * right[2]


def convolution_macs(positions: Shape, weight: Shape) -> int:
    """Multiply-accumulates of a convolution's filter applied at some positions.

    Parameters
    ----------
    positions : sequence of int
        Shape ``(batch, channels, *spatial)`` of the tensor at whose positions the filter is applied: the result of a
        convolution, the input of a transposed one.
    weight : sequence of int
        Shape of the filter; its second number is already divided by the number of groups.
    """
    return positions[0] * prod(positions[2:]) * prod(weight)


@register_formula(aten.linear)
def _linear(x: Shape, weight: Shape, bias: Shape | None = None, *, out: Shape) -> int:
    # The weight of a layer of one output may be a vector.
    return prod(x) * prod(weight[:-1])


@register_formula(aten.mm, aten.hspmm, aten._sparse_sparse_matmul, name="mm")
def _mm(left: Shape, right: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return matrix_macs(left, right)


@register_formula(aten.addmm, aten._addmm_activation, aten._sparse_addmm, aten.sspaddmm, name="addmm")
def _addmm(bias: Shape, left: Shape, right: Shape, *, out: Shape, **kwargs: Any) -> int:
    return matrix_macs(left, right)


@register_formula(aten.bmm)
def _bmm(left: Shape, right: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return batched_matrix_macs(left, right)


@register_formula(aten.baddbmm, aten.addbmm)
def _baddbmm(bias: Shape, left: Shape, right: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return batched_matrix_macs(left, right)


@register_formula(aten.sparse_sampled_addmm)
def _sampled_addmm(sampled: Any, left: Shape, right: Shape, *, out: Any, **kwargs: Any) -> int:
    # Only the elements that are stored are calculated; shapes of sparse operands say how many there are.
    return int(sampled.stored) * left[-1]


@register_formula(aten._sparse_semi_structured_mm, aten._sparse_semi_structured_linear, name="semi_structured_mm")
def _semi_structured_mm(packed: Shape, metadata: Shape, dense: Shape, *args: Any, out: Any, **kwargs: Any) -> int:
    # Two of each four elements of a row are stored.
    return matrix_macs(packed, dense)


@register_formula(aten._scaled_mm, aten._scaled_mm_v2, name="scaled_mm")
def _scaled_mm(left: Shape, right: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return matrix_macs(left, right)


@register_formula(aten._int_mm)
def _int_mm(left: Shape, right: Shape, *args: Any, out: Shape) -> int:
    return matrix_macs(left, right)


@register_formula(aten.mv)
def _mv(matrix: Shape, vector: Shape, *, out: Shape) -> int:
    return prod(matrix)


@register_formula(aten.addmv)
def _addmv(bias: Shape, matrix: Shape, vector: Shape, *, out: Shape, **kwargs: Any) -> int:
    return prod(matrix)


@register_formula(aten.dot, aten.vdot)
def _dot(left: Shape, right: Shape, *, out: Shape) -> int:
    return prod(left)


@register_formula(aten.addr)
def _addr(bias: Shape, left: Shape, right: Shape, *, out: Shape, **kwargs: Any) -> int:
    return prod(left) * prod(right)


@register_formula(aten._trilinear)
def _trilinear(
    left: Shape,
    middle: Shape,
    right: Shape,
    expand_left: Sequence[int],
    expand_middle: Sequence[int],
    expand_right: Sequence[int],
    *args: Any,
    out: Shape,
) -> int:
    # The three operands, given the dimensions they lack, are multiplied elementwise and then summed: two products
    # per element of that common shape (torch.nn.Bilinear).
    shapes: list[list[int]] = []
    for shape, missing in ((left, expand_left), (middle, expand_middle), (right, expand_right)):
        full = list(shape)
        for dimension in missing:
            full.insert(dimension, 1)
        shapes.append(full)
    common: list[int] = [max(sizes) for sizes in zip(*shapes, strict=True)]
    return 2 * prod(common)


@register_formula(aten.convolution, aten._convolution, aten.convolution_overrideable, name="convolution")
def _convolution(
    x: Shape,
    weight: Shape,
    bias: Shape | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *args: Any,
    out: Shape,
) -> int:
    return convolution_macs(x if transposed else out, weight)


@register_formula(
    aten.cudnn_convolution,
    aten.miopen_convolution,
    aten.mkldnn_convolution,
    aten._slow_conv2d_forward,
    aten.slow_conv3d_forward,
    aten._conv_depthwise2d,
    aten.conv_depthwise3d,
    aten._mps_convolution,
    aten._nnpack_spatial_convolution,
    aten.cudnn_convolution_add_relu,
    aten.cudnn_convolution_relu,
    aten.miopen_convolution_add_relu,
    aten.miopen_convolution_relu,
    aten.miopen_depthwise_convolution,
    aten.slow_conv_dilated2d,
    aten.slow_conv_dilated3d,
    name="convolution",
)
def _never_transposed_convolution(x: Shape, weight: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return convolution_macs(out, weight)


@register_formula(
    aten.cudnn_convolution_transpose,
    aten.miopen_convolution_transpose,
    aten.slow_conv_transpose2d,
    aten.slow_conv_transpose3d,
    name="convolution_transpose",
)
def _convolution_transpose(x: Shape, weight: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return convolution_macs(x, weight)


@register_formula(aten.convolution_backward)
def _convolution_backward(
    gradient: Shape,
    x: Shape,
    weight: Shape,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    *,
    out: Any,
) -> int:
    # Each multiply-accumulate of the forward pass appears once in the gradient of the input and once in the gradient
    # of the filter. The gradient of the bias is a sum, which is not counted.
    forward = convolution_macs(x if transposed else gradient, weight)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


def _grouped_reads(
    left: Shape, right: Shape, offsets: Shape | None = None, *args: Any, out: Any, **kwargs: Any
) -> dict[int, int]:
    # A token's row goes to one expert, so no more experts than rows can be touched.
    if len(left) == 2 and len(right) == 3:
        experts, inner, columns = right
        return {1: min(experts, left[0]) * inner * columns}
    return {}


@register_formula(
    aten._grouped_mm,
    aten._scaled_grouped_mm,
    aten._scaled_grouped_mm_v2,
    name="grouped_mm",
    operands=2,
    reads=_grouped_reads,
)
def _grouped_mm(left: Shape, right: Shape, *args: Any, out: Any, **kwargs: Any) -> int:
    if len(left) == 3 and len(right) == 3:
        return batched_matrix_macs(left, right)
    # (tokens, k) by (experts, k, n): each row meets one expert; (experts, m, k) by (k, tokens): each column does;
    # (m, tokens) by (tokens, n), the gradient of the experts: each token adds one outer product to one expert.
    return left[-2] * left[-1] * right[-1]
