"""Visible pairs: how many keys the queries of an attention really see.

Attention costs as much for each pair of a query and a key. So the cost of the visible pairs is the dense cost times
their share, which is a whole number. The same holds for the pairs that a mask would show but for the order of tokens
(`stagemeter.counting.unordered_pairs`), which the dense convention takes.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stagemeter.counting.known_values import known_value
from stagemeter.counting.layouts import Call
from stagemeter.counting.modes import replaced
from stagemeter.counting.registry import Rule
from stagemeter.counting.unordered_pairs import unordered_pairs

aten = torch.ops.aten

#: The name of masks without values in remarks.
UNKNOWN_MASK = "attention mask"
#: Kernels that align the last query with the last key. torch chooses them for equal lengths alone
#: (aten/src/ATen/native/transformers/sdp_utils_cpp.h, ``check_nonzero_sequence_lengths_dense`` and its neighbours).
_FROM_END = frozenset({aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward})


class KnownPairs(NamedTuple):
    """The visible pairs of a mask, those that it would show but for the order of tokens, and all of them.

    The second number is None where the mask has a form from which it does not follow.
    """

    shown: int
    unordered: int | None
    pairs: int


class Share(NamedTuple):
    """The part of an attention's products that are of unordered and of visible pairs, as numerators of `whole`."""

    unordered: int
    visible: int
    whole: int

    @classmethod
    def causal(cls, visible: int, whole: int) -> Share:
        """Return the share where nothing but the order of tokens hides a pair."""
        return cls(whole, visible, whole)

    def of(self, macs: int) -> tuple[int, int]:
        """Return the products of unordered and of visible pairs among those of all pairs."""
        return macs * self.unordered // self.whole, macs * self.visible // self.whole


#: Nothing is hidden.
WHOLE = Share(1, 1, 1)


#: Visible pairs of masks without values, by storage; None where they are not known either. References keep each storage
#: alive, so that its address is not given to another.
_noted: dict[int, tuple[Any, KnownPairs | None]] = {}


@contextmanager
def noted_masks() -> Iterator[None]:
    """Forget at the end of the block what was noted in it."""
    with replaced(sys.modules[__name__], "_noted", {}):
        yield


def note_mask(mask: torch.Tensor, pairs: KnownPairs | None) -> None:
    """Note the visible pairs of a mask on the meta device; None if they are not known."""
    storage = mask.untyped_storage()
    _noted[storage._cdata] = (storage, pairs)


def noted_pairs(mask: torch.Tensor) -> KnownPairs | None:
    """Return what was noted of a mask; None for other tensors."""
    return _noted[mask.untyped_storage()._cdata][1] if _is_noted(mask) else None


class VisiblePairs:
    """The products of visible pairs; `remarks` takes those on masks whose values are not known."""

    def __init__(self, remarks: dict[str, str]) -> None:
        self._remarks = remarks
        # The last masks as they were, whether they tell what they hide, and their pairs: layers often share two.
        self._last: deque[tuple[torch.Tensor, int, bool, KnownPairs | None]] = deque(maxlen=2)

    def macs(self, rule: Rule, operator: Any, call: Call, mask: Any, dense: int, declared: bool) -> tuple[int, int]:
        """Return the multiply-accumulates of unordered and of visible pairs of a call; `dense` are those of all pairs.

        Attention is causal if it is called with ``is_causal``. A mask tells the pairs where its values are known.
        Without values, square attention is causal inside of a module whose ``is_causal`` is true (`declared`), as
        transformers marks its attention modules. So are square products there.
        """
        if not dense or not (rule.attention or declared):
            return dense, dense
        if not rule.attention:
            return _share_of_product(rule, call.args).of(dense)
        first = position_of(operator, "query") or 0
        query, key = call.args[first : first + 2]
        return self._share(operator, call, mask, query[-2], key[-2], declared).of(dense)

    def _share(self, operator: Any, call: Call, mask: Any, queries: int, keys: int, declared: bool) -> Share:
        """Return the share of pairs that count, of one head or of as many as the mask has."""
        variant = getattr(mask, "variant", None)
        if _argument(operator, "is_causal", call.args, call.kwargs) is True:
            return Share.causal(causal_pairs(queries, keys, operator._overloadpacket in _FROM_END), queries * keys)
        if variant is not None:
            # torch/nn/attention/bias.py, ``CausalBias``.
            return Share.causal(causal_pairs(queries, keys, variant.name == "LOWER_RIGHT"), queries * keys)
        if mask is None:
            return WHOLE
        if isinstance(mask, KnownPairs):
            return self.share(mask)
        known = self.of_mask(mask, queries, keys) if isinstance(mask, torch.Tensor) else None
        if known is not None:
            return self.share(known)
        # A mask of one row for several queries is not causal: those queries are heads of one token that share keys.
        if (
            declared
            and not _is_noted(mask)
            and queries == keys
            and len(_shape(mask)) > 1
            and _shape(mask)[-2] == queries
        ):
            return Share.causal(causal_pairs(queries, keys), queries * keys)
        self._say_unknown()
        return WHOLE

    def share(self, known: KnownPairs) -> Share:
        """Return the share of the pairs of a mask that count; all pairs of one of another form, with a remark."""
        if known.unordered is None:
            self._remarks.setdefault(UNKNOWN_MASK, "it shows no window, chunk or text, and flops include what it hides")
        return Share(known.pairs if known.unordered is None else known.unordered, known.shown, known.pairs)

    def of_mask(self, mask: torch.Tensor, queries: int, keys: int, hides: bool = False) -> KnownPairs | None:
        """Return the pairs of a mask; None where neither its values nor its function are known.

        It shows pairs, or `hides` them if so.
        """
        found = self._pairs_of(mask, hides)
        if found is not None:
            return found if found.pairs else None
        whole = not hides and _is_noted(mask) and tuple(mask.shape[-2:]) == (queries, keys)
        return noted_pairs(mask) if whole else None

    def all_of(self, mask: Any) -> KnownPairs | None:
        """Return all pairs of a mask whose function shows some that are not known, with a remark; None for others."""
        if not _is_noted(mask) or noted_pairs(mask) is not None:
            return None
        self._say_unknown()
        return KnownPairs(1, 1, 1)

    def _say_unknown(self) -> None:
        self._remarks.setdefault(UNKNOWN_MASK, "its values are not known, so all of its pairs count as visible")

    def _pairs_of(self, mask: torch.Tensor, hides: bool) -> KnownPairs | None:
        if mask.is_nested or mask.is_inference():
            return pairs_of_mask(mask, hides)
        for before, version, hid, pairs in self._last:
            if hides == hid and _is_same(before, version, mask):
                return pairs
        found = pairs_of_mask(mask, hides)
        self._last.append((mask, mask._version, hides, found))
        return found


def _is_noted(mask: Any) -> bool:
    if not isinstance(mask, torch.Tensor) or mask.device.type != "meta" or mask.is_nested:
        return False
    return mask.untyped_storage()._cdata in _noted


def _is_same(before: torch.Tensor, version: int, mask: torch.Tensor) -> bool:
    """Whether a mask is another view of the same values as one before, not written to in between."""
    seen = [(type(each), each.shape, each.stride(), each.storage_offset(), each.dtype) for each in (before, mask)]
    same_memory = before.untyped_storage()._cdata == mask.untyped_storage()._cdata
    return same_memory and seen[0] == seen[1] and version == mask._version


def _shape(mask: Any) -> Sequence[int]:
    shape: Sequence[int] = mask.shape if isinstance(mask, torch.Tensor) else mask
    return shape


def is_stacked_product(rule: Rule) -> bool:
    """Whether an operator is a stack of matrix products, such as attention without a fused kernel has."""
    return rule.name in ("bmm", "baddbmm")


def _share_of_product(rule: Rule, shapes: Sequence[Any]) -> Share:
    """Return the share of pairs of a product inside of causal attention: of scores, or of probabilities."""
    if not is_stacked_product(rule):
        return WHOLE
    # The bias, such as ALiBi's, is the first operand.
    left, right = shapes[:2] if rule.name == "bmm" else shapes[1:3]
    # Scores are square, or a square matrix of probabilities meets the values.
    length = left[1] if left[1] in (left[2], right[2]) else None
    return WHOLE if length is None else Share.causal(causal_pairs(length, length), length**2)


def mask_of(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the mask of a call of attention, or its shape; None without one."""
    found = (_argument(operator, name, args, kwargs) for name in ("attn_mask", "attn_bias"))
    return next((mask for mask in found if mask is not None), None)


def hides_pairs(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of attention has a mask or is causal."""
    return mask_of(operator, args, kwargs) is not None or _argument(operator, "is_causal", args, kwargs) is True


def _argument(operator: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return an argument by name; None if left out. Kernels differ in the positions."""
    if name in kwargs:
        return kwargs[name]
    position = position_of(operator, name)
    return args[position] if position is not None and position < len(args) else None


@cache
def position_of(operator: Any, name: str) -> int | None:
    """Return the position of an operator's argument; None if it has none of that name."""
    names = [argument.name for argument in operator._schema.arguments]
    return names.index(name) if name in names else None


def causal_pairs(queries: int, keys: int, from_end: bool = False) -> int:
    """Return the pairs of causal attention: query i sees the keys 0 to i, or those up to its place from the end.

    ``scaled_dot_product_attention`` aligns the first query with the first key. The kernels of flash-attention align the
    last ones (flash_attn/flash_attn_interface.py, ``flash_attn_func``). Both are S(S+1)/2 for S queries and keys.
    """
    return window_pairs(queries, keys, right=0, shift=keys - queries if from_end else 0)


def window_pairs(queries: int, keys: int, left: int | None = None, right: int | None = None, shift: int = 0) -> int:
    """Return the pairs of a window: query i sees the keys i + shift - left to i + shift + right; None: without end.

    Source: flash_attn/flash_attn_interface.py, ``flash_attn_func``, whose shift is ``keys - queries``.
    """
    before = 0 if left is None else _up_to(queries, keys, shift - left)
    until = queries * keys if right is None else _up_to(queries, keys, shift + right + 1)
    return max(0, until - before)


def _up_to(queries: int, keys: int, first: int) -> int:
    """Return the sum over queries i of ``first + i``, at least zero and at most the number of keys."""
    below = min(queries, max(0, -first))  # Queries that reach no key.
    full = max(0, queries - max(below, keys - first))  # Queries that reach all of them.
    rising = queries - below - full
    start = max(0, first)
    return rising * start + rising * (rising - 1) // 2 + full * keys


def pairs_of_mask(mask: torch.Tensor, hides: bool = False) -> KnownPairs | None:
    """Return the pairs that a mask shows; None where its values are not known.

    A mask is boolean, true where it shows a pair, or where it `hides` one. Or it is added to scores: then it hides a
    pair by minus infinity or the least finite number.
    """
    value = known_value(mask) if mask.device.type == "meta" else mask
    if value is None or type(value) not in (torch.Tensor, torch.nn.Parameter) or value.is_nested:
        return None
    with _disable_current_modes(), torch.no_grad():
        shown: Any = value if value.dtype == torch.bool else value > torch.finfo(value.dtype).min
        shown = ~shown if hides else shown
        number, pairs = int(torch.count_nonzero(shown)), shown.numel()
        square = number < pairs and shown.dim() > 1
        return KnownPairs(number, unordered_pairs(shown) if square else pairs, pairs)
