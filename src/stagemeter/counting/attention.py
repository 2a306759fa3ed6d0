"""Attention on the meta device as a fused kernel does it.

On the meta device torch has no fused kernel: it decomposes attention into products without its name. The backward pass
then has four products. Every fused kernel has five, since it computes the scores again instead of keeping them
(torch/utils/flop_counter.py, ``sdpa_backward_flop_count``). So counting registers a kernel for the meta device, which
books both passes. All calls reach it: from Python, from inside of torch, and from activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from stagemeter.counting.known_values import onlookers
from stagemeter.counting.layouts import is_jagged
from stagemeter.counting.modes import is_transformed, replaced

_OPERATOR = torch.ops.aten.scaled_dot_product_attention.default


class Books(Protocol):
    """A counter that books attention on the meta device."""

    def attention_ran(self, args: Sequence[Any], kwargs: dict[str, Any], out: torch.Tensor) -> None:
        """Book a forward pass from the arguments of ``scaled_dot_product_attention`` and its result."""

    def attention_backward_ran(self, operands: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Book a backward pass from gradient, query, key and value, and the gradients of the last three."""


#: The counters at work, the innermost last.
_active: list[Books] = []


@contextmanager
def booked_attention(books: Books) -> Iterator[None]:
    """Book attention on the meta device until the block is left."""
    _active.append(books)
    library = None
    if len(_active) == 1:
        library = torch.library.Library("aten", "IMPL")
        library.impl("scaled_dot_product_attention", _attention, "AutogradMeta")
    try:
        yield
    finally:
        _active.remove(books)
        if library is not None:
            library._destroy()


def is_regular(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Tell whether the shapes are enough to compute the result. Keys and values may have fewer heads."""
    fits = query.shape[-1] == key.shape[-1] and key.shape[:-1] == value.shape[:-1]
    same = query.dtype == key.dtype == value.dtype and query.dim() == key.dim() == value.dim() > 1
    if not (fits and same):
        return False
    return all(more % fewer == 0 for more, fewer in zip(query.shape[:-2], key.shape[:-2], strict=True) if fewer)


def run_attention(remarks: dict[str, str], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call attention; where torch has no kernel for nested operands, copy them or run each sequence, with a remark.

    Kernels for nested operands want each sequence in one piece, and some do not support causal attention
    (torch/nested/_internal/sdpa.py, ``_can_use_math_sdpa_jagged``). The cost does not depend on the kernel.
    """
    attention = torch.nn.functional.scaled_dot_product_attention
    if not any(isinstance(arg, torch.Tensor) and arg.is_nested for arg in args):
        return attention(*args, **kwargs)
    try:
        return attention(*args, **kwargs)
    except RuntimeError as error:
        for run in (_copied, _by_sequence):
            try:
                out = run(args, kwargs)
            except (RuntimeError, ValueError):
                continue  # In the end, torch's error for the original operands is raised.
            remarks["nested attention"] = f"torch has no kernel here for the operands as they are: {_REMARKS[run]}"
            return out
        raise error


def _copied(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(*map(_in_one_piece, args), **kwargs)


def _by_sequence(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run attention on jagged operands ``(batch, heads, length, width)``, one sequence after the other."""
    attention = torch.nn.functional.scaled_dot_product_attention
    query, key, value = args[:3]
    parts = zip(query.unbind(), key.unbind(), value.unbind(), strict=True)
    made = [attention(*part, *args[3:], **kwargs).transpose(0, 1) for part in parts]
    return torch.nested.nested_tensor_from_jagged(torch.cat(made), query.offsets()).transpose(1, 2)


#: Remarks on how nested operands ran instead.
_REMARKS = {_copied: "they were copied first", _by_sequence: "each sequence was run on its own"}


@contextmanager
def nested_operands_are_tensors() -> Iterator[None]:
    """Let torch's own layers run nested operands while a function mode is on.

    Layers of ``torch.nn`` have one path for strided nested operands, the fused one. They leave it where an operand
    might override functions, and a function mode looks like that (torch/nn/modules/activation.py,
    ``MultiheadAttention.forward``).
    """
    overrides: Any = torch.overrides
    found = overrides.has_torch_function

    def has_torch_function(operands: Any) -> bool:
        if any(type(operand) is torch.Tensor and operand.is_nested for operand in operands):
            plain = (torch.Tensor, torch.nn.Parameter)
            return any(isinstance(operand, torch.Tensor) and type(operand) not in plain for operand in operands)
        return bool(found(operands))

    with replaced(overrides, "has_torch_function", has_torch_function):
        yield


def _in_one_piece(operand: Any) -> Any:
    if is_jagged(operand):
        return operand.transpose(1, 2).contiguous().transpose(1, 2)
    return operand.contiguous() if isinstance(operand, torch.Tensor) and operand.is_nested else operand


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    looked_on = onlookers() > 1  # Another counter would miss what did not run.
    # No fused kernel has a gradient of the mask.
    masked_with_gradient = attn_mask is not None and attn_mask.requires_grad
    # `_Fused` has no rule for a batch or for a tangent.
    by_itself = looked_on or masked_with_gradient or is_transformed()
    if not _active or by_itself or not is_regular(query, key, value):
        out: torch.Tensor = _OPERATOR.decompose(query, key, value, attn_mask, *args, **kwargs)
        return out
    books = _active[-1]
    out = _Fused.apply(books, query, key, value)
    books.attention_ran((query, key, value, attn_mask, *args), kwargs, out)
    return out


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, books: Books, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.books = books
        # As kernels do: activation checkpointing recomputes what it did not keep when the backward pass reads it.
        ctx.save_for_backward(query, key, value)
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        operands = ctx.saved_tensors
        gradients = [torch.empty_like(operand) for operand in operands]
        ctx.books.attention_backward_ran((gradient, *operands), gradients)
        return (None, *gradients)
