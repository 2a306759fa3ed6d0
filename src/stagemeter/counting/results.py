"""Results on the meta device that are made here and not by torch.

Functions that are counted as Python calls them need only shapes. torch's meta kernels of norms and of linear
interpolation, which cost nothing by convention, take most of the time of a count. Grouped products take only bfloat16
there. The gradient of a masked scatter has the shape of its source, but torch looks at the mask. Operands that do not
fit together go to torch, which raises the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from stagemeter.counting.attention import is_regular
from stagemeter.counting.known_values import onlookers
from stagemeter.counting.layouts import is_plain

aten = torch.ops.aten


def result_on_meta(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operator, or None where torch has to make it."""
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
        # Each matrix is a group.
        shape.insert(0, left.shape[0])
    elif left.dim() == right.dim():
        # The summed dimension is cut into groups.
        if offsets is None:
            return None
        shape.insert(0, offsets.shape[0])
    return left.new_empty(shape)


def _masked_scatter_backward(gradient: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]) -> Any:
    return gradient.new_empty(tuple(sizes))


def _upsample_linear1d(x: torch.Tensor, size: Sequence[int], *args: Any) -> Any:
    dimensions = len(("batch", "channels", "positions"))
    if x.dim() != dimensions or len(size) != 1 or min(*x.shape, *size) <= 0:
        return None
    return x.new_empty((*x.shape[:-1], *size))


_RESULTS: dict[Any, Callable[..., Any]] = {
    aten.masked_scatter_backward.default: _masked_scatter_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._grouped_mm.default: _grouped_mm,
    aten.upsample_linear1d.default: _upsample_linear1d,
}


#: Python functions that are counted as called: the operator whose formula applies, and their first parameters.
CAUGHT_FUNCTIONS: dict[Callable[..., Any], tuple[Any, tuple[str, ...]]] = {
    torch.nn.functional.linear: (aten.linear, ("input", "weight", "bias")),
    torch.nn.functional.scaled_dot_product_attention: (
        aten.scaled_dot_product_attention,
        ("query", "key", "value", "attn_mask"),
    ),
}


def by_position(
    names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move named arguments to their positions, up to the first that was not given."""
    named = dict(kwargs)
    for name in names[len(args) :]:
        if name not in named:
            break
        args = (*args, named.pop(name))
    return args, named


def result_of_function(attention: bool, args: Sequence[Any]) -> torch.Tensor | None:
    """Return the result of attention, or of ``linear``, from shapes alone; None where the function has to run."""
    if onlookers() > 1 or torch._C._get_tracing_state() is not None:
        return None  # Another mode, such as a second counter, would miss what did not run.
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    if any(type(t) not in (torch.Tensor, nn.Parameter) or t.device.type != "meta" for t in tensors):
        return None
    if not all(map(is_plain, tensors)):
        return None
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return None
    if attention:
        query, key, value = args[:3]
        if not is_regular(query, key, value):
            return None
        return tensors[0].new_empty((*query.shape[:-1], value.shape[-1]))
    x, weight = tensors[:2]
    fits = weight.dim() == 2 and x.shape[-1] == weight.shape[1] and len({t.dtype for t in tensors}) == 1
    return x.new_empty((*x.shape[:-1], weight.shape[0])) if fits else None
