"""Results of some operators on the meta device, made here and not by torch.

Norms cost nothing by convention, but torch's own kernels of them for the meta device are written in Python and take
most of the time of a count: their results have the shape of their input. Grouped products it takes in bfloat16 alone
there, while real devices take other data types, too. The gradient of what is put where a mask says so has the shape of
what was put, while torch looks at the mask. What does not fit together is left to torch, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch

aten = torch.ops.aten


def result_on_meta(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operator, or None where torch is to make it.

    Parameters
    ----------
    operator : torch._ops.OpOverload
        As a dispatch mode receives it.
    args, kwargs
        Its arguments.
    """
    make = _RESULTS.get(operator)
    if make is None or not args or type(args[0]) is not torch.Tensor or args[0].device.type != "meta":
        return None
    return make(*args, **kwargs)


def _batch_norm(x: torch.Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *args: Any) -> Any:
    channels = (x.shape[1],) if x.dim() > 1 else ()
    if not channels or any(
        tensor is not None and tuple(tensor.shape) != channels for tensor in (weight, bias, mean, variance)
    ):
        return None
    kept = channels if training else 0
    return torch.empty_like(x), x.new_empty(kept), x.new_empty(kept)


def _layer_norm(x: torch.Tensor, shape: Sequence[int], weight: Any, bias: Any, *args: Any) -> Any:
    width = len(shape)
    if any(tensor is not None and tuple(tensor.shape) != tuple(shape) for tensor in (weight, bias)):
        return None
    if not width or tuple(x.shape[-width:]) != tuple(shape):
        return None
    rows = (*x.shape[:-width], *[1] * width)
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(rows), x.new_empty(rows)


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, batch: int, channels: int, size: int, groups: int, *args: Any
) -> Any:
    if any(tensor is not None and tuple(tensor.shape) != (channels,) for tensor in (weight, bias)):
        return None
    if channels % groups or batch * channels * size != prod(x.shape):
        return None
    return torch.empty_like(x), x.new_empty((batch, groups)), x.new_empty((batch, groups))


def _grouped_mm(
    left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    if left.dtype == torch.bfloat16 or left.dtype != right.dtype:
        return None
    shape = [left.shape[-2], right.shape[-1]]
    if left.shape[-1] != right.shape[-2]:
        return None
    if left.dim() == right.dim() == 3:
        # A group each.
        shape.insert(0, left.shape[0])
    elif left.dim() == right.dim():
        # Cut into groups along what is summed.
        if offsets is None:
            return None
        shape.insert(0, offsets.shape[0])
    return left.new_empty(shape)


def _masked_scatter_backward(gradient: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]) -> Any:
    return gradient.new_empty(tuple(sizes))


_RESULTS: dict[Any, Callable[..., Any]] = {
    aten.masked_scatter_backward.default: _masked_scatter_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._grouped_mm.default: _grouped_mm,
}
