"""Attention as separate products: a mask between the two tells which pairs are visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stagemeter.core.cost import Cost
from stagemeter.counting.attention_nodes import AttentionNodes
from stagemeter.counting.events import Event
from stagemeter.counting.known_values import known_value
from stagemeter.counting.registry import Rule
from stagemeter.counting.visible_pairs import KnownPairs, Share, VisiblePairs

aten = torch.ops.aten

#: Operators that mask scores.
MASKING = frozenset({aten.add, aten.add_, aten.masked_fill, aten.masked_fill_, aten.where})
_ADDING = frozenset({aten.add, aten.add_})


@dataclass(frozen=True, slots=True)
class _Scores:
    """The last product in a module: its event and place, the nodes that it made, and its result's shape.

    `share` is that of the pairs that a mask shows; None before one was applied.
    """

    event: Event
    place: int
    nodes: range
    shape: tuple[int, ...]
    share: Share | None = None


class EagerAttention:
    """The products of attention that its module calls one by one.

    `events` are the counter's. A mask counts for the product before it, whose result has the shape of the scores. It
    also counts for the product after it in the same module, which takes probabilities of that shape.
    """

    def __init__(self, events: list[Event], pairs: VisiblePairs, nodes: AttentionNodes) -> None:
        self._events, self._pairs, self._nodes = events, pairs, nodes
        self._last: _Scores | None = None

    def share_of(self, rule: Rule, module: str, args: Sequence[Any]) -> Share | None:
        """Return the share of a product by the mask that was applied to its left operand; None without one."""
        last, left = self._last, args[0 if rule.name == "bmm" else 1]
        if last is None or last.event.module != module or tuple(left.shape) != last.shape:
            return None
        return last.share

    def ran(self, event: Event, nodes: range, out: torch.Tensor) -> None:
        """Note the product that was recorded last."""
        self._last = _Scores(event, len(self._events) - 1, nodes, tuple(out.shape))

    def masked(self, operator: Any, module: str, args: Sequence[Any], out: torch.Tensor) -> None:
        """Note an operator that may mask the result of the last product."""
        last = self._last
        if last is None or last.event.module != module or last.event.cost is None:
            return
        if out.numel() != prod(last.shape) or tuple(out.shape[-2:]) != last.shape[-2:] or not out.numel():
            return
        shown = self._shown(operator._overloadpacket, args, out)
        current = len(self._events) > last.place and self._events[last.place] is last.event
        if shown is None or not current:
            return
        share, again = self._pairs.share(shown), last.event.spare == last.event.cost
        macs = last.event.cost.macs
        unordered, visible = share.of(macs)
        cost = replace(last.event.cost, macs_causal=visible)
        event = replace(last.event, cost=cost, spare=cost if again else Cost(macs=macs - unordered))
        self._events[last.place] = event
        self._nodes.note(last.nodes, Share(unordered, visible, macs))
        self._last = replace(last, event=event, share=share)

    def _shown(self, packet: Any, args: Sequence[Any], out: torch.Tensor) -> KnownPairs | None:
        """Return the pairs that an operator leaves; None where it masks nothing."""
        queries, keys = out.shape[-2:]
        if packet in _ADDING:
            mask = args[1]
            found = self._pairs.of_mask(mask, queries, keys) if _is_tensor(mask) and mask.is_floating_point() else None
            return self._pairs.all_of(mask) if found is None else None if found.shown == found.pairs else found
        if packet is aten.where:
            shows, scores, hidden = args[0], args[1], args[2:]
            turned = _is_tensor(scores) and scores.numel() < out.numel()
            value = scores if turned else hidden[0] if hidden else None
        else:
            (shows, value), turned = args[1:3], True
        return self._pairs.of_mask(shows, queries, keys, hides=turned) if _hides(value, out.dtype) else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _hides(value: Any, dtype: torch.dtype) -> bool:
    """Whether a score hides its pair."""
    if isinstance(value, torch.Tensor):
        known = known_value(value) if value.device.type == "meta" else value
        if known is None or known.numel() != 1:
            return False
        with _disable_current_modes():
            value = known.item()
    return isinstance(value, (int, float)) and value <= torch.finfo(dtype).min
