"""The registry of formulas: how the counter counts each operator.

A formula takes the operator's own arguments, with every tensor replaced by its shape, plus ``out``: the shape of the
result. It returns multiply-accumulates. Reads and writes follow from the operands, unless ``reads`` says that an
operator reads only part of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Shape = Sequence[int]
#: Takes an operator's arguments with shapes in place of tensors, and ``out``; returns multiply-accumulates.
Formula = Callable[..., int]
#: Takes the operator's shapes; returns how many elements of each tensor operand (in order) are read.
ReadRule = Callable[..., dict[int, int]]
FormulaType = TypeVar("FormulaType", bound=Formula)


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule that counts one operator.

    Attributes
    ----------
    formula : callable
        Multiply-accumulates from shapes.
    name : str
        Name of the operator in reports.
    writes_first_only : bool
        Whether only the first result is data. Attention kernels also return statistics such as the log-sum-exp.
    operands : int or None
        Number of leading arguments that are data; the others are saved statistics or offsets. None: all.
    reads : callable or None
        Elements read of some operands, by position, where an operator does not read all of them.
    attention : bool
        Whether the operator is a whole attention, or its backward pass: query, key and value come first, or are named
        so in its schema.
    causal_formula : callable or None
        The same as `formula` for visible pairs alone; None where the counter finds out by itself.
    unordered_formula : callable or None
        The same for pairs that would be visible but for the order of tokens, such as those in a window. None: all.
        It needs a `causal_formula`.
    spare : callable or None
        Multiply-accumulates among those of `formula` that the model does not need, such as scores that are computed
        again. It also takes ``needed``: which gradients of query, key and value are needed.
    by_name : bool
        Whether the formula takes all arguments by the names of the operator's schema, a vector of integers as its
        numbers. It raises LookupError where the count is not known, which lists the operator as one without a formula.
    """

    formula: Formula
    name: str
    writes_first_only: bool = False
    operands: int | None = None
    reads: ReadRule | None = None
    attention: bool = False
    causal_formula: Formula | None = None
    unordered_formula: Formula | None = None
    spare: Formula | None = None
    by_name: bool = False


#: By the operator's whole name, such as ``aten::mm``: a library may not be imported yet when its formula is registered.
_RULES: dict[str, Rule] = {}


def register_formula(
    *operators: Any,
    name: str | None = None,
    writes_first_only: bool = False,
    operands: int | None = None,
    reads: ReadRule | None = None,
    attention: bool = False,
    causal_formula: Formula | None = None,
    unordered_formula: Formula | None = None,
    spare: Formula | None = None,
    by_name: bool = False,
) -> Callable[[FormulaType], FormulaType]:
    """Register a formula for some operators, as a decorator.

    Parameters
    ----------
    *operators : torch._ops.OpOverloadPacket or str
        For example ``torch.ops.aten.mm``, or an operator of your own library; ``"library::name"`` for one whose library
        may not be imported yet.
    name : str, optional
        Name in reports. Default: the operator's own name without its namespace and leading underscores.
    writes_first_only, operands, reads, attention, causal_formula, unordered_formula, spare, by_name
        See `Rule`.

    Returns
    -------
    callable
        The decorator; it returns the formula unchanged.

    Raises
    ------
    TypeError
        If something other than an operator packet is given, such as ``torch.mm`` or one overload.
    ValueError
        If an operator has a formula already; `unregister_formula` removes it.
    """
    keys = [_key(operator) for operator in operators]
    for operator, key in zip(operators, keys, strict=True):
        if key in _RULES:
            raise ValueError(f"operator: {operator} has a formula already. Remove it by unregister_formula({operator})")

    def register(formula: FormulaType) -> FormulaType:
        for key in keys:
            _RULES[key] = Rule(
                formula,
                name or _default_name(key),
                writes_first_only=writes_first_only,
                operands=operands,
                reads=reads,
                attention=attention,
                causal_formula=causal_formula,
                unordered_formula=unordered_formula,
                spare=spare,
                by_name=by_name,
            )
        return formula

    return register


def rule_for(operator: Any, formula: Formula) -> Rule:
    """Return the rule of an operator for a formula that is not registered."""
    return Rule(formula, _default_name(_key(operator)))


def unregister_formula(operator: Any) -> Rule:
    """Remove the formula of an operator and return its rule.

    Raises
    ------
    KeyError
        If the operator has no formula.
    """
    key = _key(operator)
    if key not in _RULES:
        raise KeyError(f"operator: {operator} has no formula. Register one by register_formula")
    return _RULES.pop(key)


def rule_of(operator: Any) -> Rule | None:
    """Return the rule of an operator, or None if it has no formula; in-place variants share the rule."""
    key = str(operator._qualified_op_name)
    rule = _RULES.get(key)
    if rule is None and is_of_torch(operator) and key.endswith("_") and not key.endswith("__"):
        return _RULES.get(key[:-1])
    return rule


def is_of_torch(operator: Any) -> bool:
    """Whether an operator, or one of its overloads, belongs to torch's own library, ``aten``."""
    packet = getattr(operator, "_overloadpacket", operator)
    return str(packet._qualified_op_name).startswith("aten::")


def _key(operator: Any) -> str:
    if isinstance(operator, str) and "::" in operator:
        return operator
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        raise TypeError(
            f"operator: {operator!r} is a {type(operator).__name__}. Give an operator such as torch.ops.aten.mm"
        )
    return str(operator._qualified_op_name)


def _default_name(key: str) -> str:
    return key.rpartition("::")[2].lstrip("_")
