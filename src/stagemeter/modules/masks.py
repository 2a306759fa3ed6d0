"""Attention masks of transformers on the meta device.

To find out whether it can skip a mask, transformers reads the values of masks and positions, unless they are symbols of
a trace. Tensors on the meta device have no values, so they are symbols, too. A mask costs no product, but it tells
which pairs of a query and a key are visible. That follows from the function that makes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import getclosurevars
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stagemeter.counting.known_values import known_value
from stagemeter.counting.modes import replaced
from stagemeter.counting.unordered_pairs import MaskRows, row_blocks, unordered_window
from stagemeter.counting.visible_pairs import KnownPairs, note_mask, noted_masks, window_pairs

#: Pairs of a mask that are asked for, in all and at once.
_MOST_PAIRS, _MOST_AT_ONCE = 1 << 30, 1 << 22
#: transformers' kinds of attention that take a mask of all pairs.
_WITH_MASK = ("sdpa", "eager")


@contextmanager
def meta_tensors_are_symbols() -> Iterator[None]:
    """Make transformers treat tensors on the meta device as symbols, and note the visible pairs of its masks.

    Source: ``transformers.masking_utils``, ``is_tracing`` and ``sdpa_mask``.
    """
    masks: Any = sys.modules.get("transformers.masking_utils")
    found = getattr(masks, "is_tracing", None)
    if found is None:
        yield
        return

    def is_tracing(tensor: Any = None) -> bool:
        return getattr(getattr(tensor, "device", None), "type", None) == "meta" or bool(found(tensor))

    kinds: dict[str, Any] = masks.AttentionMaskInterface._global_mapping
    with ExitStack() as stack:
        stack.enter_context(noted_masks())
        stack.enter_context(replaced(masks, "is_tracing", is_tracing))
        for kind in _WITH_MASK:
            stack.callback(kinds.__setitem__, kind, kinds[kind])
            kinds[kind] = _noting(kinds[kind], masks)
        yield


def _noting(make: Callable[..., Any], masks: Any) -> Callable[..., Any]:
    @wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        mask = make(*args, **kwargs)
        if isinstance(mask, torch.Tensor) and mask.device.type == "meta" and not args:
            note_mask(mask, _pairs(masks, **kwargs))
        return mask

    return made


def _pairs(
    masks: Any,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> KnownPairs | None:
    """Return the pairs that a mask shows; without values of `attention_mask`, no token is padding.

    But for the order of tokens it shows the pairs of its function alone: padding counts as tokens.
    """
    if not isinstance(q_offset, int) or not isinstance(kv_offset, int):
        return None
    function = _with_values(masks, mask_function or masks.causal_mask_function)
    padding = None if attention_mask is None else known_value(attention_mask)
    every = batch_size * q_length * kv_length
    window = _window(masks, function)
    unordered = None
    if window is not None:
        pairs = window_pairs(q_length, kv_length, *window, shift=q_offset - kv_offset)
        unordered = batch_size * unordered_window(q_length, kv_length, pairs, *window)
        if padding is None:
            return KnownPairs(batch_size * pairs, unordered, every)
    if every > _MOST_PAIRS:
        return None
    sizes = batch_size, q_length, kv_length, q_offset, kv_offset
    rows = None if unordered is not None else _rows(function, *sizes)
    if padding is not None:
        # Keys behind the given ones are padding (``prepare_padding_mask``).
        padding = torch.nn.functional.pad(padding, (0, max(0, kv_length + kv_offset - padding.shape[-1])))
        function = masks.and_masks(function, masks.padding_mask_function(padding.bool()))
    visible = _rows(function, *sizes) if padding is not None else rows
    if visible is None:
        return None
    if unordered is None and rows is not None:
        with _disable_current_modes():
            unordered = rows.unordered
    with _disable_current_modes():
        return KnownPairs(visible.shown, unordered, every)


def _rows(
    function: Callable[..., Any], batch_size: int, q_length: int, kv_length: int, q_offset: int, kv_offset: int
) -> MaskRows | None:
    """Return what the rows of a mask show; None where its function does not tell."""
    rows = MaskRows(q_offset - kv_offset)
    try:
        with _disable_current_modes(), torch.no_grad(), torch.device("cpu"):
            batch, head = torch.arange(batch_size)[:, None, None, None], torch.arange(1)[None, :, None, None]
            keys = (torch.arange(kv_length) + kv_offset)[None, None, None, :]
            for block in row_blocks(q_length, kv_length, batch_size, _MOST_AT_ONCE):
                queries = (torch.arange(block.start, block.stop) + q_offset)[None, None, :, None]
                rows.add(function(batch, head, queries, keys).expand(batch_size, 1, len(block), kv_length)[:, 0])
    except (RuntimeError, TypeError, ValueError):
        # The function holds tensors without values, or takes single numbers only. All pairs count then, with a remark.
        return None
    return rows


def _with_values(masks: Any, function: Any) -> Any:
    """Return the function of a mask with values in place of tensors on the meta device.

    Without values, no sequence is packed with others, and chunks begin at the first token.
    """
    found = getclosurevars(function).nonlocals if callable(function) else {}
    names = set(found)
    values = {name: _value(held) for name, held in found.items() if isinstance(held, torch.Tensor)}
    if names == {"mask_functions"} and "and_masks" in function.__qualname__:
        parts = [_with_values(masks, part) for part in found["mask_functions"]]
        left = [part for part in parts if part is not masks.bidirectional_mask_function]
        return masks.and_masks(*left) if len(left) > 1 else left[0] if left else masks.bidirectional_mask_function
    if names == {"mask_functions"} and "or_masks" in function.__qualname__:
        return masks.or_masks(*(_with_values(masks, part) for part in found["mask_functions"]))
    if names == {"packed_sequence_mask"}:
        value = values["packed_sequence_mask"]
        return masks.bidirectional_mask_function if value is None else masks.packed_sequence_mask_function(value)
    if names == {"mask_function", "position_ids"}:
        inner, value = _with_values(masks, found["mask_function"]), values["position_ids"]
        return inner if value is None else masks.remap_positions_for_packed_sequence(inner, value)
    if names == {"chunk_size", "left_padding"}:
        value = values["left_padding"]
        starts = torch.zeros(len(found["left_padding"]), dtype=torch.long, device="cpu") if value is None else value
        return masks.chunked_overlay(found["chunk_size"], starts)
    if names == {"block_sequence_ids"} and values["block_sequence_ids"] is not None:
        return masks.blockwise_overlay(values["block_sequence_ids"])
    return function


def _value(held: torch.Tensor) -> torch.Tensor | None:
    return known_value(held) if held.device.type == "meta" else held


def _window(masks: Any, function: Any) -> tuple[int | None, int | None] | None:
    """Return how many keys before and after itself a query sees, by the functions of transformers; None for others."""
    if function is masks.bidirectional_mask_function:
        return None, None
    if function is masks.causal_mask_function:
        return None, 0
    found = getclosurevars(function).nonlocals if callable(function) else {}
    if set(found) == {"sliding_window"} and "sliding_window_overlay" in function.__qualname__:
        return found["sliding_window"] - 1, None
    if set(found) == {"sliding_window"} and "sliding_window_bidirectional_overlay" in function.__qualname__:
        return found["sliding_window"], found["sliding_window"]
    if set(found) == {"mask_functions"} and "and_masks" in function.__qualname__:
        parts = [_window(masks, part) for part in found["mask_functions"]]
        if all(part is not None for part in parts):
            sides = zip(*(part for part in parts if part is not None), strict=True)
            left, right = (min((size for size in side if size is not None), default=None) for side in sides)
            return left, right
    return None
