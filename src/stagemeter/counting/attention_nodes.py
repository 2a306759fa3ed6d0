"""The nodes of an autograd graph that belong to attention, with the share of its pairs that is visible.

The products of a backward pass do not tell whether they belong to attention. Autograd numbers the nodes of its graph in
order, and in a backward pass the running node has the number that the forward pass gave it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from stagemeter.counting.registry import Rule, is_of_torch
from stagemeter.counting.visible_pairs import Share, is_stacked_product

#: Nodes whose first edges lead to query, key and value.
_ATTENTION_NODES = ("ScaledDotProduct", "_FusedBackward", "FlexAttentionAutogradOpBackward")
_ALL = (True, True, True)


class AttentionNodes:
    """The share of pairs of the attention that made each node, by the node's number."""

    def __init__(self) -> None:
        self._shares: dict[int, Share] = {}
        # Functions with a backward pass of their own run without gradients. The last node may be theirs.
        self._hidden: dict[int, list[Share]] = {}
        self._thread: int | None = None
        self._confused = False

    def note(self, nodes: range, share: Share) -> None:
        """Note the numbers of nodes that belong to some attention; if empty, it has the number of the next one."""
        if share.visible == share.whole:
            return
        if nodes:
            # Each thread has numbers of its own.
            here = threading.get_ident()
            self._confused = self._confused or self._thread not in (None, here)
            self._thread = here
            self._shares.update(dict.fromkeys(nodes, share))
        elif not torch.is_grad_enabled():
            self._hidden.setdefault(nodes.stop - 1, []).append(share)

    def share_of(self, node: Any, rule: Rule, operator: Any, own: Share) -> Share | None:
        """Return the share of the products that a node runs, by default its `own`; None if it cannot be told."""
        number = node._sequence_nr()
        share = self._shares.get(number)
        if share is None:
            hidden = self._hidden.get(number, []) if isinstance(node, torch.autograd.function.BackwardCFunction) else []
            if not hidden or rule.causal_formula is not None:
                return own
            if not (rule.attention or is_stacked_product(rule) or not is_of_torch(operator)):
                return own
            if not rule.attention or len(hidden) > 1:
                return None
            share = hidden[0]
        rest = any(own.whole * part % share.whole for part in share)
        return None if rest or self._confused else Share(*share.of(own.whole), own.whole)


def next_number() -> int:
    """Return the number of the next node that this thread makes."""
    return int(torch._C._autograd._get_sequence_nr())


def nodes_of(operands: Sequence[Any]) -> range:
    """Return the number of the node of an operator that torch just dispatched; none if it has none."""
    has_node = torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in operands)
    return nodes_since(next_number() - has_node)


def nodes_since(first: int) -> range:
    """Return the numbers of the nodes that were made from a number on."""
    return range(first, next_number())


def needed_gradients(node: Any) -> Sequence[bool]:
    """Return which gradients of query, key and value a node of attention needs; all where it does not say."""
    if node is None or not node.name().startswith(_ATTENTION_NODES):
        return _ALL
    return [function is not None for function, _ in node.next_functions[:3]]
