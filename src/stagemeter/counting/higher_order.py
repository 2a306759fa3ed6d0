"""Higher-order operators of torch: attention with functions of scores, branches, loops and scans.

They call the functions that they take, and that work counts where it runs: the taken branch, each pass of a loop's
body. ``flex_attention`` also has a formula of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from stagemeter.counting.attention_formulas import attention, attention_backward, spare_of_backward
from stagemeter.counting.known_values import known_value
from stagemeter.counting.modes import replaced
from stagemeter.counting.registry import Rule
from stagemeter.counting.unordered_pairs import MaskRows, row_blocks
from stagemeter.counting.visible_pairs import KnownPairs

#: Pairs of a block mask that are asked for at once.
_MOST_AT_ONCE = 1 << 24
#: Higher-order operators that do no arithmetic.
_FREE = frozenset({"print"})


#: Those with a formula, by name (torch/utils/flop_counter.py, ``_register_flex_attention_flops``).
RULES: dict[str, Rule] = {
    "flex_attention": Rule(attention, "flex_attention", writes_first_only=True, operands=3, attention=True),
    "flex_attention_backward": Rule(
        attention_backward, "flex_attention_backward", operands=4, attention=True, spare=spare_of_backward
    ),
}


def is_higher_order(operator: Any) -> bool:
    """Whether an operator takes functions."""
    return isinstance(operator, torch._ops.HigherOrderOperator)


def is_free(operator: Any) -> bool:
    """Whether a higher-order operator does no arithmetic."""
    return operator.name() in _FREE


def name_of(operator: Any) -> str:
    """Return the name under which a higher-order operator is listed where it cannot be counted."""
    return f"higher_order.{operator.name()}"


def seen_through(mode: TorchDispatchMode, args: Sequence[Any]) -> tuple[tuple[Any, ...], bool]:
    """Return arguments whose functions run with a mode on, and whether any argument is such a function."""
    found = False

    def seen(value: Any) -> Any:
        nonlocal found
        if isinstance(value, tuple) and any(map(_is_function, value)):
            return tuple(map(seen, value))
        if not _is_function(value):
            return value
        found = True

        def with_mode(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return value(*args, **kwargs)

        return with_mode

    return tuple(map(seen, args)), found


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, (torch.Tensor, torch._ops.OperatorBase, type))


def like(operator: Any) -> Any:
    """Return the operator of torch whose arguments `operands` returns."""
    if operator.name() == "flex_attention_backward":
        return torch.ops.aten._scaled_dot_product_fused_attention_overrideable_backward.default
    return torch.ops.aten.scaled_dot_product_attention.default


def operands(operator: Any, args: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of ``flex_attention``, or of its backward pass, as formulas of attention take them."""
    query, key, value = args[:3]
    if operator.name() == "flex_attention_backward":
        out, gradient = args[3], args[5]
        return (out if gradient is None else gradient, query, key, value), {}
    block_mask = args[4]
    hides = getattr(block_mask[-1], "__name__", "") != "noop_mask"
    return (query, key, value), {"attn_mask": _shown_by(block_mask, query, key)} if hides else {}


def _shown_by(block_mask: Any, query: torch.Tensor, key: torch.Tensor) -> Any:
    """Return the pairs that a block mask shows; the shape of the mask where its function needs what has no value."""
    # Imported late: it brings a compiler with it.
    from torch.nn.attention.flex_attention import create_mask

    queries, keys = query.shape[-2], key.shape[-2]
    shows, blocks = block_mask[-1], block_mask[2]
    batch, heads = blocks.shape[:2]
    device = "cpu" if blocks.device.type == "meta" else blocks.device
    rows = MaskRows(0 if queries == keys else None)
    try:
        with _disable_current_modes(), torch.no_grad():
            for block in row_blocks(queries, keys, batch * heads, _MOST_AT_ONCE):

                def of_rows(b: Any, h: Any, q: Any, k: Any, start: int = block.start) -> Any:
                    return shows(b, h, q + start, k)

                mask = create_mask(of_rows, batch, heads, len(block), keys, device=device)
                rows.add(mask.reshape(-1, len(block), keys))
            return KnownPairs(rows.shown, rows.unordered, batch * heads * queries * keys)
    except RuntimeError:
        # A function of the user's may hold tensors of another device, or without values. All pairs count then, with a
        # remark.
        return queries, keys


def run_plainly(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run branches, loops, scans and maps as Python would.

    Unless a compiler first traces the functions, their operators have no gradients of tensors that the functions hold
    (torch/_higher_order_ops/utils.py, ``_hop_compile_and_call``). Counting compiles nothing.
    """
    run = _PLAINLY.get(operator.name())
    if run is None or kwargs or has_stand_ins(args, kwargs) or not _can_decide(operator, args):
        return operator(*args, **kwargs)
    return run(*args)


def _can_decide(operator: Any, args: Sequence[Any]) -> bool:
    """Whether a branch can be chosen; without a gradient both can run instead."""
    if operator.name() != "cond" or not is_out_of_sight(args[0]):
        return True
    return torch.is_grad_enabled() or known_value(args[0]) is not None


def _cond(predicate: Any, first: Any, second: Any, given: Sequence[Any]) -> Any:
    return first(*given) if predicate else second(*given)


def _while_loop(condition: Any, body: Any, carried: Sequence[Any], given: Sequence[Any]) -> Any:
    out: Any = tuple(carried)
    while condition(*tree_leaves(out), *given):
        out = body(*tree_leaves(out), *given)
    return out


def _scan(combine: Any, carried: Sequence[Any], given: Sequence[Any], others: Sequence[Any]) -> Any:
    kept, leaves, structure = len(carried), list(carried), None
    made: list[list[Any]] = []
    for step in zip(*(tensor.unbind() for tensor in given), strict=True):
        leaves, structure = tree_flatten(combine(*leaves[:kept], *step, *others))
        made.append(leaves[kept:])
    assert structure is not None  # torch refuses a scan of no steps.
    return tree_unflatten([*leaves[:kept], *_stacked(made)], structure)


def _map(function: Any, given: Sequence[Any], others: Sequence[Any]) -> Any:
    steps = zip(*(tensor.unbind() for tensor in given), strict=True)
    made = [tree_flatten(function(*step, *others)) for step in steps]
    return tree_unflatten(_stacked([leaves for leaves, _ in made]), made[0][1])


def _stacked(made: Sequence[Sequence[Any]]) -> list[Any]:
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*made, strict=True)]


#: The work of operators by name, with their arguments as torch passes them: flat lists of tensors. Functions, and so
#: these, may return any structure.
_PLAINLY: dict[str, Callable[..., Any]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "scan": _scan,
    "map_impl": _map,
}


@contextmanager
def flex_attention_on_any_device() -> Iterator[None]:
    """Let ``flex_attention`` run on devices without a kernel for it: counting needs none."""
    # Imported late: it brings a compiler with it.
    from torch.nn.attention import flex_attention

    with replaced(flex_attention, "_validate_device", lambda *operands: None):
        yield


def is_out_of_sight(predicate: Any) -> bool:
    """Whether a predicate is a tensor without a value."""
    fake = isinstance(predicate, torch._subclasses.FakeTensor)
    return isinstance(predicate, torch.Tensor) and (fake or predicate.device.type == "meta")


def has_stand_ins(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether operands are fake tensors, for which torch runs the body of a loop only once."""
    flat, _ = tree_flatten((list(args), dict(kwargs)))
    return any(isinstance(value, torch._subclasses.FakeTensor) for value in flat)
