"""Formulas of attention, and of fused layers that contain it.

Attention is dense: every query meets every key of its own sequence. Visible pairs leave out what the kernel's arguments
hide. Some kernels take several sequences
in one tensor and their starts in a vector. Without those numbers the operator is listed as one without a formula.

Sources: torch 2.13, ``aten/src/ATen/native/native_functions.yaml`` (schemas), ``torch/nn/attention/varlen.py``
(``torch_attn``), ``torch/utils/flop_counter.py`` (products of attention and of its backward pass); flash-attention 2.8,
``flash_attn/flash_attn_interface.py`` (``flash_attn``), and 3, ``hopper/flash_attn_interface.py`` (``flash_attn_3``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stagemeter.counting.known_values import known_value
from stagemeter.counting.registry import Shape, register_formula
from stagemeter.counting.unordered_pairs import unordered_window
from stagemeter.counting.visible_pairs import window_pairs

aten = torch.ops.aten

#: Multiply-accumulates of attention, or of its backward pass, from the shapes of query, key and value.
AttentionMacs = Callable[[Shape, Shape, Shape], int]


def attention_macs(query: Shape, key: Shape, value: Shape) -> int:
    """Multiply-accumulates of dense attention: ``batch * heads * L * S * (width + value_width)``.

    Shapes are ``(..., heads, length, width)``. Query heads may share keys and values, so the query's heads count.
    """
    *batch_and_heads, query_length, width = query
    # Where two sizes differ, one is 1 and repeated, or the heads are shared: either way the larger one counts.
    pairs = zip_longest(reversed(batch_and_heads), reversed(key[:-2]), fillvalue=1)
    return prod(map(max, pairs)) * query_length * key[-2] * (width + value[-1])


def attention_backward_macs(query: Shape, key: Shape, value: Shape) -> int:
    """Multiply-accumulates of the backward pass of fused attention.

    It has five products: the scores again (they were not kept), gradients of scores, values, queries and keys
    (torch/utils/flop_counter.py, ``sdpa_backward_flop_count``).
    """
    *batch_and_heads, query_length, width = query
    return prod(batch_and_heads) * query_length * key[-2] * (3 * width + 2 * value[-1])


def attention_backward_spare(query: Shape, key: Shape, value: Shape, needed: Sequence[bool]) -> int:
    """Multiply-accumulates of `attention_backward_macs` beyond those that the model needs.

    These are the scores again, and products for gradients of query, key and value that are not `needed`. With all
    gradients, four of five products are left: twice the forward pass.
    """
    *batch_and_heads, query_length, width = query
    by_query, by_key, by_value = needed
    widths = (by_query + by_key) * width + ((by_query or by_key) + by_value) * value[-1]
    return attention_backward_macs(query, key, value) - prod(batch_and_heads) * query_length * key[-2] * widths


@register_formula(
    aten.scaled_dot_product_attention,
    aten._scaled_dot_product_attention_math,
    aten._scaled_dot_product_attention_math_for_mps,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable,
    aten._triton_scaled_dot_attention,
    name="scaled_dot_product_attention",
    writes_first_only=True,
    attention=True,
)
def attention(query: Shape, key: Shape, value: Shape, *args: Any, out: Any, **kwargs: Any) -> int:
    """Count an operator whose first operands are query, key and value."""
    return attention_macs(query, key, value)


def spare_of_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Count what the model does not need of an operator whose first operands are a gradient, query, key and value."""
    return attention_backward_spare(query, key, value, kwargs["needed"])


@register_formula(
    aten._scaled_dot_product_efficient_attention_backward,
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
    aten._scaled_dot_product_cudnn_attention_backward,
    aten._scaled_dot_product_fused_attention_overrideable_backward,
    name="scaled_dot_product_attention_backward",
    operands=4,
    attention=True,
    spare=spare_of_backward,
)
def attention_backward(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *args: Any, out: Any, **kwargs: Any
) -> int:
    """Count an operator whose first operands are a gradient, query, key and value."""
    return attention_backward_macs(query, key, value)


#: Stands for a vector of integers whose values are not known.
_UNKNOWN: Sequence[int] = ()


def named_arguments(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by the names of its schema, for formulas that are registered `by_name`.

    A tensor becomes its shape. A vector of integers becomes a tuple of its numbers, empty where they are not known.
    """
    names = [a.name for a in operator._schema.arguments if not (a.name == "out" and a.is_write)]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return {name: _numbers_or_shape(value) for name, value in given.items() if name != "out"}


def _numbers_or_shape(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() != 1 or value.is_floating_point() or value.is_complex():
        return value.shape
    known = known_value(value) if value.device.type == "meta" else value if type(value) is torch.Tensor else None
    if known is None:
        return _UNKNOWN
    with _disable_current_modes():
        return tuple(known.tolist())


def _starts(given: dict[str, Any], of: str) -> Sequence[int] | None:
    """Return the starts of the sequences of queries (``q``) or keys (``k``), under any library's name."""
    for name in (f"cum_seq_{of}", f"cu_seq_{of}", f"cu_seqlens_{of}"):
        if given.get(name) is not None:
            starts: Sequence[int] = given[name]
            if not starts:
                raise LookupError(f"{name} has no values")
            return starts
    return None


def _sequences(given: dict[str, Any], heads_first: bool) -> Iterator[tuple[Shape, Shape, Shape]]:
    """Yield the shapes ``(..., heads, length, width)`` of query, key and value of each sequence."""
    if any(given.get(name) is not None for name in _OTHER_KEYS):
        raise LookupError("keys are read from pages of a cache, or in part")
    shapes: list[Shape] = [given[name if name in given else name[0]] for name in ("query", "key", "value")]
    starts, key_starts = _starts(given, "q"), _starts(given, "k")
    if starts is None and key_starts is not None:
        raise LookupError("keys are in sequences, queries in one batch")
    if starts is None:
        if not heads_first:
            shapes = [(*shape[:-3], shape[-2], shape[-3], shape[-1]) for shape in shapes]
        yield shapes[0], shapes[1], shapes[2]
        return
    for places in (pairwise(starts), pairwise(key_starts or starts)):
        if any(end < start for start, end in places):
            raise LookupError("sequences end before they begin")
    query, key, value = ((1, shape[-2], shape[-1]) for shape in shapes)
    for (first, end), (first_key, end_key) in zip(pairwise(starts), pairwise(key_starts or starts), strict=True):
        length, keys = end - first, end_key - first_key
        yield (1, query[1], length, query[2]), (1, key[1], keys, key[2]), (1, value[1], keys, value[2])


def _kernel_pairs(given: dict[str, Any], queries: int, keys: int) -> tuple[int, int]:
    """Return the pairs that a kernel's arguments show but for the order, and those that they show, of one head.

    Kernels of flash-attention align the last query with the last key, also in a window (flash_attn_interface.py,
    ``flash_attn_func``). The efficient kernel has a type: 1 aligns the first ones, 2 the last ones
    (aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernel_forward.h, ``CustomMaskType``).
    """
    if given.get("attention_chunk"):
        raise LookupError("chunks of attention have no formula")
    kind = given.get("custom_mask_type")
    window = given.get("window_size")
    if kind is not None:
        # A window of this kernel counts the query itself.
        left, right = (window - 1 if window else None), (0 if kind else None)
        shift = keys - queries if kind == _FROM_BOTTOM_RIGHT else 0
    else:
        left, right = window or (given.get("window_size_left"), given.get("window_size_right"))
        # A negative size is none.
        left, right = (None if size is None or size < 0 else size for size in (left, right))
        if given.get("is_causal") or given.get("causal"):
            right = 0
        shift = 0 if "attn_bias" in given else keys - queries
    shown = window_pairs(queries, keys, left, right, shift)
    return unordered_window(queries, keys, shown, left, right), shown


#: ``CustomMaskType.CausalFromBottomRight``.
_FROM_BOTTOM_RIGHT = 2


def _register_kernels(*operators: Any, backward: bool = False, heads_first: bool = False) -> None:
    """Register attention kernels, whose operands are ``(..., length, heads, width)`` unless heads come first."""
    of_one: AttentionMacs = attention_backward_macs if backward else attention_macs

    def formula(*, out: Any, **given: Any) -> int:
        return sum(of_one(*shapes) for shapes in _sequences(given, heads_first))

    def of_pairs(given: dict[str, Any], visible: bool) -> int:
        found = 0
        for query, key, value in _sequences(given, heads_first):
            pairs = query[-2] * key[-2]
            if pairs:
                found += of_one(query, key, value) * _kernel_pairs(given, query[-2], key[-2])[visible] // pairs
        return found

    def spare(*, out: Any, needed: Sequence[bool], **given: Any) -> int:
        return sum(attention_backward_spare(*shapes, needed) for shapes in _sequences(given, heads_first))

    register_formula(
        *operators,
        name="scaled_dot_product_attention" + ("_backward" if backward else ""),
        writes_first_only=not backward,
        operands=4 if backward else 3,
        causal_formula=lambda *, out, **given: of_pairs(given, visible=True),
        unordered_formula=lambda *, out, **given: of_pairs(given, visible=False),
        spare=spare if backward else None,
        by_name=True,
    )(formula)


#: Arguments by which a kernel reads other keys than the operand holds: pages, lengths of a cache that is not full.
_OTHER_KEYS = (
    *("block_table", "page_table", "kv_batch_idx", "leftpad_k", "seqlen_k", "seqused_k", "seqused_q"),
    *("k_new", "v_new", "qv", "q_v"),
)

_register_kernels(
    aten._flash_attention_forward,
    aten._flash_attention_forward_no_dropout_inplace,
    aten._efficient_attention_forward,
    "torch_attn::_varlen_attn",
    "torch_attn::_varlen_attn_out",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
    "flash_attn_3::_flash_attn_forward",
    "flash_attn_3::fwd",
)
_register_kernels(
    aten._flash_attention_backward,
    aten._efficient_attention_backward,
    "torch_attn::_varlen_attn_backward",
    "flash_attn::_flash_attn_backward",
    "flash_attn::_flash_attn_varlen_backward",
    "flash_attn_3::_flash_attn_backward",
    "flash_attn_3::bwd",
    backward=True,
)
_register_kernels(aten._cudnn_attention_forward, heads_first=True)
_register_kernels(aten._cudnn_attention_backward, heads_first=True, backward=True)


@register_formula(aten._native_multi_head_attention, name="multi_head_attention", writes_first_only=True)
def _multi_head_attention(
    query: Shape,
    key: Shape,
    value: Shape,
    width: int,
    heads: int,
    projections: Shape,
    bias: Any,
    projection: Shape,
    *args: Any,
    out: Any,
    **kwargs: Any,
) -> int:
    # One matrix holds the projections of query, key and value, a third of it each.
    rows = sum(prod(shape[:-1]) for shape in (query, key, value))
    mixed = prod(query[:-1]) * (2 * key[-2] * width + prod(projection))
    return rows * prod(projections) // 3 + mixed


@register_formula(aten._transformer_encoder_layer_fwd, name="transformer_encoder_layer")
def _encoder_layer(
    x: Shape,
    width: int,
    heads: int,
    projections: Shape,
    bias: Any,
    projection: Shape,
    *args: Any,
    out: Any,
    **kwargs: Any,
) -> int:
    # Among the other arguments, those of two dimensions are the matrices of the feed-forward network.
    feed_forward = [shape for shape in args[8:12] if isinstance(shape, Sequence) and len(shape) > 1]
    weights = sum(map(prod, (projections, projection, *feed_forward)))
    return prod(x[:-1]) * (weights + 2 * x[-2] * width)
