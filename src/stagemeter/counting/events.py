"""The events that a counter records, and their sums per module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from stagemeter.core.cost import ZERO, Cost, total


@dataclass(frozen=True, slots=True)
class Event:
    """An operator that ran, or a call of a module: then `operator` is empty.

    `module` is the innermost running one, empty for the model itself. `cost` is None if the operator has no formula and
    is not free. `spare` is the part of it beyond the model's: what a backward pass computes again or for gradients that
    nothing needs, and pairs that a mask hides in any order. `untold` says that the visible pairs of the module are not
    known, and nothing else.
    """

    module: str
    operator: str
    cost: Cost | None
    spare: Cost = ZERO
    untold: bool = False


@dataclass
class Counts:
    """The costs that a counter recorded, per module; the empty name is the model.

    A module's numbers include those of its children. A module that is shared, or called several times, keeps the first
    name that leads to it, and its calls add up.

    Attributes
    ----------
    by_module : dict
        Costs by operator for each module.
    unsupported : dict
        Calls by operator without a formula for each module.
    called : set of str
        The modules that were called.
    again : dict
        The part of a module's cost that the model does not need: what activation checkpointing and the backward pass of
        fused attention compute again, and pairs outside of a window. Modules without are left out.
    untold : set of str
        Modules whose cost of visible pairs is not known: `Cost.macs_causal` has some attention dense.
    apart : dict
        Cost of what is inside of a module and counted apart (`stagemeter.core.module_attributes`). No other number
        includes it; modules without are left out.
    remarks : dict
        Remarks on operators, such as why one with a formula is listed as one without.
    """

    by_module: dict[str, dict[str, Cost]] = field(default_factory=dict)
    unsupported: dict[str, Counter[str]] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    again: dict[str, Cost] = field(default_factory=dict)
    untold: set[str] = field(default_factory=set)
    apart: dict[str, Cost] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def added_up(cls, events: Iterable[Event], modules: Iterable[str], apart: set[str]) -> Self:
        """Sum events per module, in order; `modules` names all of them, `apart` those that are counted apart."""
        counts = cls()
        own: dict[tuple[str, str], Cost] = {}
        for name in {*modules, ""}:
            counts.by_module[name] = {}
            counts.unsupported[name] = Counter()
        for event in events:
            if not event.operator:
                counts.called.add(event.module)
            elif event.untold:
                counts.untold.update(with_ancestors(event.module))
            elif event.cost is not None:
                key = (event.module, event.operator)
                own[key] = own[key] + event.cost if key in own else event.cost
                if event.spare != ZERO and apart.isdisjoint(with_ancestors(event.module)):
                    for name in with_ancestors(event.module):
                        counts.again[name] = counts.again.get(name, ZERO) + event.spare
            else:
                for name in with_ancestors(event.module):
                    counts.unsupported[name][event.operator] += 1
        for (module, operator), cost in own.items():
            if apart and not apart.isdisjoint(with_ancestors(module)):
                for name in with_ancestors(module):
                    counts.apart[name] = counts.apart.get(name, ZERO) + cost
                continue
            for name in with_ancestors(module):
                operators = counts.by_module[name]
                operators[operator] = operators[operator] + cost if operator in operators else cost
        return counts

    def of(self, *modules: str) -> Cost:
        """Return the cost of some modules as they ran; they must not contain one another."""
        return total(cost for module in modules for cost in self.by_module[module].values())

    def needed_of(self, *modules: str) -> Cost:
        """Return the cost of some modules without what the model does not need."""
        return self.of(*modules) + -1 * self.again_of(*modules)

    def need_as(self, other: Counts) -> None:
        """Take what the model needs from a pass that computes less for the same result."""
        rest = {name: self.of(name) + -1 * other.needed_of(name) for name in self.by_module}
        self.again = {name: cost for name, cost in rest.items() if cost != ZERO}
        self.untold |= other.untold

    def again_of(self, *modules: str) -> Cost:
        """Return the part of some modules' cost that the model does not need."""
        return total(self.again.get(module, ZERO) for module in modules)

    def apart_of(self, *modules: str) -> Cost:
        """Return the cost of the parts of some modules that are counted apart."""
        return total(self.apart.get(module, ZERO) for module in modules)

    def operators(self, *modules: str) -> dict[str, Cost]:
        """Return the cost by operator of some modules, which must not contain one another."""
        merged: dict[str, Cost] = {}
        for module in modules:
            for operator, cost in self.by_module[module].items():
                merged[operator] = merged.get(operator, ZERO) + cost
        return merged

    def unsupported_of(self, *modules: str) -> Counter[str]:
        """Return the calls by operator without a formula of some modules."""
        return sum((self.unsupported[module] for module in modules), Counter())


def with_ancestors(name: str) -> Iterator[str]:
    """Yield a dotted name and all that lead to it, the empty one last."""
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name
