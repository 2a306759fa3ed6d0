"""The cost of one call of an operator: products, those of visible pairs, and elements read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import quantized_parameters
from stagemeter.counting.attention_formulas import named_arguments
from stagemeter.counting.complex_numbers import REAL_PRODUCTS, ComplexConvolutions, has_complex, real_numbers
from stagemeter.counting.layouts import Call, calls, elements_of, of_stored, shape_of
from stagemeter.counting.registry import Rule
from stagemeter.counting.visible_pairs import Share, VisiblePairs, mask_of, position_of


class Operands:
    """The kinds of tensors by their storage: weights (parameters of `model`), cache, or activations."""

    def __init__(self, model: nn.Module | None) -> None:
        # References keep each storage alive, so that its address is not given to another while counting.
        self._kinds: dict[int, tuple[str, int, Any]] = {}
        self._quantized: dict[int, int] = {}
        self._states: dict[int, Any] = {}
        for parameter in model.parameters() if model is not None else ():
            if not is_lazy(parameter):
                self._mark(parameter, "weight", real_numbers(parameter))
        for module in model.modules() if model is not None else ():
            for parameter, stored in quantized_parameters(module).items():
                self._quantized[parameter.untyped_storage()._cdata] = stored

    def mark_cache(self, tensor: torch.Tensor) -> None:
        """Mark a tensor as cached keys or values."""
        self._mark(tensor, "cache", real_numbers(tensor))

    def mark_state(self, tensor: torch.Tensor) -> None:
        """Mark a tensor as a state that a cache keeps."""
        storage = tensor.untyped_storage()
        self._states[storage._cdata] = storage

    def is_state(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is marked as a state."""
        if not self._states:
            return False
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._states

    def follow(self, source: torch.Tensor, copy: torch.Tensor) -> None:
        """Mark a copy as the same kind as its source."""
        kind, elements = self.read(source)
        if kind != "activation":
            self._mark(copy, kind, elements)
            old, new = _storage(source), _storage(copy)
            if old is not None and new is not None and old._cdata in self._quantized:
                self._quantized[new._cdata] = self._quantized[old._cdata]

    def read(self, tensor: torch.Tensor) -> tuple[str, int]:
        """Return the kind of a tensor and the number of real numbers to read: two for each complex element.

        A sparse tensor has its stored elements. An expanded view, or a copy of one, counts each element once:
        grouped-query attention may pass the cache in such a form.
        """
        numbers, storage = real_numbers(tensor), _storage(tensor)
        if storage is None:
            return "activation", numbers
        stored = storage.nbytes() // tensor.element_size() * (2 if tensor.is_complex() else 1)
        kind, elements, _ = self._kinds.get(storage._cdata, ("activation", stored, None))
        return kind, min(numbers, elements)

    def quantized_bytes(self, tensor: torch.Tensor, elements: int) -> int | None:
        """Return the stored bytes of some elements of a weight; None if it is not quantized."""
        storage = _storage(tensor)
        stored = None if storage is None else self._quantized.get(storage._cdata)
        # Experts' matrices have one size, so a whole number of them takes a whole number of bytes.
        return None if stored is None else stored * elements // self._kinds[storage._cdata][1]

    def _mark(self, tensor: torch.Tensor, kind: str, elements: int) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self._kinds[storage._cdata] = (kind, elements, storage)


def _storage(tensor: torch.Tensor) -> Any:
    """Return the storage of a tensor's elements; None where torch does not expose it, as for MKL-DNN's layout."""
    elements = elements_of(tensor)
    return elements.untyped_storage() if torch._C._has_storage(elements) else None


@dataclass(frozen=True, slots=True)
class CallCost:
    """The cost of a call, and the share of its multiply-accumulates that are of unordered and of visible pairs.

    `spare` are those of all pairs that the model does not need. Fused attention computes scores again in its backward
    pass, and gradients that nothing needs.
    """

    cost: Cost
    share: Share
    spare: int = 0

    def split(self, share: Share) -> tuple[Cost, Cost]:
        """Return the cost with a share of its own, and the part of it that the model does not need."""
        whole = max(1, share.whole)
        unordered, visible = (part * (share.whole - self.spare) // whole for part in share[:2])
        cost = replace(self.cost, macs_causal=share.visible)
        return cost, Cost(macs=share.whole - unordered, macs_causal=share.visible - visible)


class CallCosts:
    """The costs of calls; `remarks` takes those on calls whose visible pairs are not known."""

    def __init__(
        self, operands: Operands, complex_convolutions: ComplexConvolutions, remarks: dict[str, str] | None = None
    ) -> None:
        self._operands = operands
        self._complex_convolutions = complex_convolutions
        self.visible_pairs = VisiblePairs({} if remarks is None else remarks)

    def of(
        self,
        rule: Rule,
        operator: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: Any,
        causal: bool,
        needed: Sequence[bool] = (True, True, True),
    ) -> CallCost:
        """Return the cost of a call, or raise LookupError if it depends on something unknown.

        `causal` is whether the module declares its attention causal. `needed` is which gradients of query, key and
        value a backward pass needs.
        """
        # A tensor that receives the result is not an operand.
        kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        place = _position_of_result(operator)
        if place is not None and place < len(args):
            out, args = args[place], [*args[:place], *args[place + 1 :]]
        packet = operator._overloadpacket
        macs = unordered = visible = spare = 0
        partial_reads: dict[int, int] = {}
        mask = None if rule.by_name else mask_of(operator, args, kwargs)
        by_name = [Call((), named_arguments(operator, args, kwargs), shape_of(out))] if rule.by_name else []
        for call in by_name or calls(packet, args, kwargs, out):
            dense = rule.formula(*call.args, **call.kwargs, out=call.out)
            if rule.causal_formula is not None:
                shown = rule.causal_formula(*call.args, **call.kwargs, out=call.out)
                kept = (rule.unordered_formula or rule.formula)(*call.args, **call.kwargs, out=call.out)
            else:
                kept, shown = self.visible_pairs.macs(rule, operator, call, mask, dense, causal)
            if rule.spare is not None:
                spare += rule.spare(*call.args, **call.kwargs, needed=needed, out=call.out)
            partial_reads = rule.reads(*call.args, **call.kwargs, out=call.out) if rule.reads else {}
            done = of_stored(packet, args, call.args, dense)
            macs += done
            unordered += done - (dense - kept)
            visible += done - (dense - shown)
        factor = REAL_PRODUCTS if has_complex((args, kwargs)) else self._complex_convolutions.factor(rule)
        # The storage of an operand says whether it is a weight, cache, or an activation.
        reads = Counter[str]()
        operands = [*args, *kwargs.values()] if rule.operands is None else args[: rule.operands]
        for position, argument in enumerate(operands):
            for operand in argument if isinstance(argument, (list, tuple)) else (argument,):
                if isinstance(operand, torch.Tensor) and (operand.is_floating_point() or operand.is_complex()):
                    kind, elements = self._operands.read(operand)
                    elements = partial_reads.get(position, elements)
                    stored = self._operands.quantized_bytes(operand, elements)
                    if stored is None:
                        reads[kind] += elements
                    else:
                        reads["quantized"] += stored
        cost = Cost(
            macs=macs * factor,
            macs_causal=visible * factor,
            activations=_written(out, rule.writes_first_only),
            activation_reads=reads["activation"],
            weight_reads=reads["weight"],
            kv_reads=reads["cache"],
            packed_weight_bytes=reads["quantized"],
        )
        return CallCost(cost, Share(unordered * factor, visible * factor, macs * factor), spare * factor)


@cache
def _position_of_result(operator: Any) -> int | None:
    position = position_of(operator, "out")
    return position if position is not None and operator._schema.arguments[position].is_write else None


def _written(out: Any, first_only: bool) -> int:
    if isinstance(out, torch.Tensor):
        return real_numbers(out)
    results = [r for r in (out[:1] if first_only else out) if isinstance(r, torch.Tensor)]
    return sum(real_numbers(r) for r in results if r.is_floating_point() or r.is_complex())
