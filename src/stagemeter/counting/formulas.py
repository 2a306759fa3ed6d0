"""Formulas of matrix products and convolutions: multiply-accumulates from the shapes of the operands.

Conventions and their sources:

- A product of (m, k) by (k, n) takes ``m * k * n`` multiply-accumulates.
- A convolution multiplies its filter at every output position, padding included, as torch's FlopCounterMode counts
  (torch/utils/flop_counter.py, ``conv_flop_count``); a transposed one at every input position.
- A grouped product multiplies each row of the left operand by one expert's matrix.
- Formulas count products of the operands' own numbers. The counter multiplies by
  `stagemeter.counting.complex_numbers.REAL_PRODUCTS` where these are complex.

Schemas are those of torch 2.13, ``aten/src/ATen/native/native_functions.yaml``. Attention has its formulas in
`stagemeter.counting.attention_formulas`; `stagemeter.counting.zero_cost` lists the operators that cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from stagemeter.counting.registry import Shape, register_formula

aten = torch.ops.aten


def matrix_macs(left: Shape, right: Shape) -> int:
    """Multiply-accumulates of an (m, k) by (k, n) product."""
    rows, inner = left
    return rows * inner * right[1]


def batched_matrix_macs(left: Shape, right: Shape) -> int:
    """Multiply-accumulates of a (b, m, k) by (b, k, n) product."""
    batch, rows, inner = left
    return batch * rows * inner * right[2]


def convolution_macs(positions: Shape, weight: Shape) -> int:
    """Multiply-accumulates of a convolution's filter applied at some positions.

    `positions` is the shape ``(batch, channels, *spatial)`` of the result, or of the input of a transposed convolution.
    The second number of `weight`, the filter's shape, is already divided by the number of groups.
    """
    return positions[0] * prod(positions[2:]) * prod(weight)


@register_formula(aten.mm, aten.hspmm, aten._sparse_sparse_matmul, name="mm")
@register_formula(aten._scaled_mm, aten._scaled_mm_v2, name="scaled_mm")
@register_formula(aten._int_mm)
def _mm(left: Shape, right: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return matrix_macs(left, right)


@register_formula(aten.addmm, aten._addmm_activation, aten._sparse_addmm, aten.sspaddmm, name="addmm")
def _addmm(bias: Shape, left: Shape, right: Shape, *, out: Shape, **kwargs: Any) -> int:
    return matrix_macs(left, right)


@register_formula(aten._sparse_semi_structured_mm, aten._sparse_semi_structured_linear, name="semi_structured_mm")
def _semi_structured_mm(packed: Shape, metadata: Shape, dense: Shape, *args: Any, out: Any, **kwargs: Any) -> int:
    # Two of each four elements of a row are stored.
    return matrix_macs(packed, dense)


@register_formula(aten._foreach_mm, name="mm")
def _foreach_mm(left: Sequence[Shape], right: Sequence[Shape], *, out: Any) -> int:
    return sum(map(matrix_macs, left, right))


@register_formula("inductor::_mm_plus_mm", name="mm")
def _mm_plus_mm(a: Shape, b: Shape, c: Shape, d: Shape, *, out: Shape) -> int:
    return matrix_macs(a, b) + matrix_macs(c, d)


@register_formula(aten.bmm)
def _bmm(left: Shape, right: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return batched_matrix_macs(left, right)


@register_formula(aten.baddbmm, aten.addbmm)
def _baddbmm(bias: Shape, left: Shape, right: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    return batched_matrix_macs(left, right)


@register_formula(aten.sparse_sampled_addmm)
def _sampled_addmm(sampled: Any, left: Shape, right: Shape, *, out: Any, **kwargs: Any) -> int:
    # Only stored elements are computed; the shape of a sparse operand holds their number.
    return int(sampled.stored) * left[-1]


@register_formula(aten.linear)
def _linear(x: Shape, weight: Shape, bias: Shape | None = None, *, out: Shape) -> int:
    # The weight of a layer of one output may be a vector.
    return prod(x) * prod(weight[:-1])


@register_formula(aten.mkldnn_linear, name="linear")
@register_formula(aten._weight_int8pack_mm, name="int8_mm")
def _row_per_output(x: Shape, weight: Shape, *args: Any, out: Shape) -> int:
    return prod(x) * weight[0]


@register_formula(
    aten._weight_int4pack_mm,
    aten._weight_int4pack_mm_for_cpu,
    aten._weight_int4pack_mm_with_scales_and_zeros,
    aten._dyn_quant_matmul_4bit,
    name="int4_mm",
)
def _int4_weights(x: Shape, weight: Shape, *args: Any, out: Shape) -> int:
    # Weights are packed in tiles: the number of outputs is that of the result.
    return prod(x) * out[-1]


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


@register_formula(aten.affine_grid_generator, aten.cudnn_affine_grid_generator, name="affine_grid_generator")
def _affine_grid(theta: Shape, size: Any, *args: Any, out: Shape) -> int:
    # Every place of the grid, in homogeneous coordinates, by a matrix: (positions, d + 1) by (d + 1, d).
    return prod(out) * theta[-1]


@register_formula(aten.mkldnn_rnn_layer, name="rnn_layer", writes_first_only=True)
def _rnn_layer(x: Shape, from_input: Shape, from_hidden: Shape, *args: Any, out: Any) -> int:
    # Each step multiplies the input and the hidden state of each sequence by the weights of all gates.
    return prod(x[:-1]) * (prod(from_input) + prod(from_hidden))


def _grouped_reads(
    left: Shape, right: Shape, offsets: Shape | None = None, *args: Any, out: Any, **kwargs: Any
) -> dict[int, int]:
    # A token's row goes to one expert, so at most as many experts as rows are read.
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
    # of the filter. The gradient of the bias is a sum, which costs nothing.
    forward = convolution_macs(x if transposed else gradient, weight)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


@register_formula(aten.conv_tbc, name="convolution")
def _convolution_time_first(x: Shape, weight: Shape, *args: Any, out: Shape, **kwargs: Any) -> int:
    # Operands are (time, batch, channels), the filter (width, inputs, outputs).
    return out[0] * out[1] * prod(weight)


@register_formula(aten.conv_tbc_backward, name="convolution_backward")
def _convolution_time_first_backward(gradient: Shape, x: Shape, weight: Shape, *args: Any, out: Any) -> int:
    return 2 * gradient[0] * gradient[1] * prod(weight)
