"""What one call of an operator costs: products, and what is read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from stagemeter.core.cost import Cost
from stagemeter.counting.attention_formulas import named_arguments
from stagemeter.counting.complex_numbers import REAL_PRODUCTS, ComplexConvolutions, has_complex, real_numbers
from stagemeter.counting.layouts import Call, calls, of_stored, shape_of
from stagemeter.counting.operands import Operands
from stagemeter.counting.registry import Rule


class CallCosts:
    """Costs of calls.

    Parameters
    ----------
    operands : Operands
        What operands are.
    complex_convolutions : ComplexConvolutions
        Which convolutions are parts of complex ones.
    """

    def __init__(self, operands: Operands, complex_convolutions: ComplexConvolutions) -> None:
        self._operands = operands
        self._complex_convolutions = complex_convolutions

    def of(
        self, rule: Rule, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, causal: bool
    ) -> Cost:
        """Return the cost of a call.

        Parameters
        ----------
        rule : Rule
            How the operator is counted.
        operator : torch._ops.OpOverload
            The operator.
        args, kwargs, out
            Its arguments and its result.
        causal : bool
            Whether the module that runs says of itself that its attention is causal.

        Raises
        ------
        LookupError
            If what the count depends on is not known.
        """
        # A tensor that the result is put in is not an operand.
        kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        place = _position_of_result(operator)
        if place is not None and place < len(args):
            out, args = args[place], [*args[:place], *args[place + 1 :]]
        packet = operator._overloadpacket
        macs = macs_causal = 0
        partial_reads: dict[int, int] = {}
        by_name = [Call((), named_arguments(operator, args, kwargs), shape_of(out))] if rule.by_name else []
        for call in by_name or calls(packet, args, kwargs, out):
            dense = rule.formula(*call.args, **call.kwargs, out=call.out)
            if rule.causal_formula is not None:
                saved = dense - rule.causal_formula(*call.args, **call.kwargs, out=call.out)
            else:
                saved = _causal_saving(rule, operator, call, dense, causal)
            partial_reads = rule.reads(*call.args, **call.kwargs, out=call.out) if rule.reads else {}
            done = of_stored(packet, args, call.args, dense)
            macs += done
            macs_causal += done - saved
        factor = REAL_PRODUCTS if has_complex((args, kwargs)) else self._complex_convolutions.factor(rule)
        # Cached keys and values are read as weights are: known by what they are stored in.
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
        return Cost(
            macs=macs * factor,
            macs_causal=macs_causal * factor,
            activations=_written(out, rule.writes_first_only),
            activation_reads=reads["activation"],
            weight_reads=reads["weight"],
            kv_reads=reads["cache"],
            packed_weight_bytes=reads["quantized"],
        )


def _causal_saving(rule: Rule, operator: Any, call: Call, macs: int, declared: bool) -> int:
    """Half of self-attention's products, where the attention is causal.

    Causal is what says so: attention called with ``is_causal``, or attention with a mask, or in products of its
    own, inside of a module whose ``is_causal`` is true, which is how transformers marks its attention modules.
    """
    shapes, named_shapes, _ = call
    if rule.attention:
        named = _argument(operator, "is_causal", shapes, named_shapes) is True
        mask = _argument(operator, "attn_mask", shapes, named_shapes)
        mask = _argument(operator, "attn_bias", shapes, named_shapes) if mask is None else mask
        query_length, key_length = shapes[0][-2], shapes[1][-2]
        # A mask of one row for several queries is not causal: the queries are heads that share keys, of one token.
        masked = declared and mask is not None and len(mask) > 1 and mask[-2] == query_length
        # A sequence of one token has no mask, and is halved like every other length.
        alone = declared and key_length == 1
        return macs // 2 if alone or ((named or masked) and query_length == key_length) else 0
    if declared and rule.name in ("bmm", "baddbmm"):
        # Eager attention: scores are square, or a square matrix of probabilities meets the values. A bias, such as
        # that of ALiBi, comes before them.
        left, right = shapes[:2] if rule.name == "bmm" else shapes[1:3]
        square = left[1] == right[2] or left[1] == left[2]
        return macs // 2 if square else 0
    return 0


def _argument(operator: Any, name: str, shapes: Any, named_shapes: Mapping[str, Any]) -> Any:
    """An argument by its name, which kernels have in different places: a tensor's as its shape; None if left out."""
    if name in named_shapes:
        return named_shapes[name]
    position = _position_of(operator, name)
    return shapes[position] if position is not None and position < len(shapes) else None


@cache
def _position_of(operator: Any, name: str) -> int | None:
    names = [argument.name for argument in operator._schema.arguments]
    return names.index(name) if name in names else None


@cache
def _position_of_result(operator: Any) -> int | None:
    """Where an operator takes the tensor that its result is put in; None where it makes one."""
    position = _position_of(operator, "out")
    return position if position is not None and operator._schema.arguments[position].is_write else None


def _written(out: Any, first_only: bool) -> int:
    if isinstance(out, torch.Tensor):
        return real_numbers(out)
    results = [r for r in (out[:1] if first_only else out) if isinstance(r, torch.Tensor)]
    return sum(real_numbers(r) for r in results if r.is_floating_point() or r.is_complex())
