"""Costs of a forward pass or a generation, stage by stage, from the shapes of its calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import torch
from torch import nn

from stagemeter.core.cost import QUANTITIES, ZERO, Cost, total
from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, OTHER, PREFILL
from stagemeter.counting.events import Counts
from stagemeter.counting.modes import replaced
from stagemeter.modules.requests import DRAFT, Request, RequestCall, depth_of
from stagemeter.modules.run import Pass, count_from_shapes
from stagemeter.modules.shapes import tensors_of, without_weights

#: transformers' names of the tokens that a pass adds.
_NEW = ("input_ids", "decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds")
#: Number of calls up to which each is counted, without a search for a line.
_FEW = 4


@dataclass(frozen=True)
class RequestCost:
    """The cost of a request.

    Attributes
    ----------
    stages : dict of str to Cost
        Cost of each stage, without what the model does not need, see `Counts.needed_of`. For a generation, ``prefill``
        is the rest of reading the prompt, and ``decode_total`` all steps of decoding.
    executed : dict of str to Cost
        The same as it ran.
    steps : int
        Steps of decoding.
    total, total_executed : Cost
        Cost of the whole request.
    unsupported : frozenset of str
        Operators without a formula that ran; no number includes them.
    missing : tuple of str
        Parts of the request that could not be counted, with the reason; no number includes them.
    uncounted : frozenset of int
        Positions of these calls in the request.
    asked : bool
        Whether the cost may depend on values of arguments, beside their shapes.
    told : bool
        Whether the visible pairs of all attention are known.
    """

    stages: Mapping[str, Cost]
    executed: Mapping[str, Cost]
    steps: int
    total: Cost
    total_executed: Cost
    unsupported: frozenset[str]
    missing: tuple[str, ...] = ()
    uncounted: frozenset[int] = frozenset()
    asked: bool = False
    told: bool = True


class BareModels:
    """The model that serves the requests and its helpers, without weights."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._bare = without_weights(model)

    def of(self, module: nn.Module, helpers: dict[nn.Module, nn.Module]) -> tuple[nn.Module, str]:
        """Return a model without weights and the name of a module in it; add other models to the request's helpers."""
        name = self._names.get(module)
        if name is not None:
            return self._bare, name
        if module not in helpers:
            helpers[module] = without_weights(module)
        return helpers[module], ""

    def owns(self, module: nn.Module) -> bool:
        """Whether a module is part of the model."""
        return module in self._names


def request_cost(
    models: BareModels, stages: Mapping[str, Sequence[str]], request: Request, generation: bool
) -> RequestCost:
    """Count a request from shapes alone, or raise StagemeterError if the model fails on them."""
    unsupported: set[str] = set()
    asked, told = False, True
    helpers: dict[nn.Module, nn.Module] = {}
    known: dict[int, Counts] = {}
    missing: dict[str, list[int]] = {}

    def count(call: RequestCall) -> Counts:
        nonlocal asked, told
        if id(call) in known:
            return known[id(call)]
        bare, name = models.of(call.module, helpers)
        given = call.given
        wanted = Pass(given.args, given.kwargs, values=given.values, part=name, method=call.method)
        with _of_depth(bare.get_submodule(name), call.depth):
            counted = count_from_shapes(bare, wanted)
        asked = asked or counted.asked
        told = told and "" not in counted.forward.untold
        unsupported.update(counted.forward.unsupported_of(""))
        known[id(call)] = counted.forward
        return counted.forward

    def by_stage(read: Callable[..., Cost]) -> dict[str, Cost]:
        """Return the costs of stages; `read` takes counts and names of modules."""
        costs: dict[str, Cost] = {}
        groups: dict[tuple[bool, str], list[int]] = {}
        for place, call in enumerate(request.calls):
            if models.owns(call.module) and call.role not in (DECODE, DRAFT, OTHER):
                counts = count(call)
                parts = {name: read(counts, *modules) for name, modules in stages.items()}
                rest = read(counts, "") + -1 * total(parts.values())
                for name, cost in [*parts.items(), (rest_of(call, stages), rest)]:
                    costs[name] = costs.get(name, ZERO) + cost
            else:
                groups.setdefault((models.owns(call.module), call.role), []).append(place)
        for (owned, role), places in groups.items():
            calls = [request.calls[place] for place in places]
            stage = DECODE_TOTAL if role == DECODE else rest_of(calls[0], stages)
            try:
                costs[stage] = costs.get(stage, ZERO) + _cost_of_all(lambda call: read(count(call), ""), calls)
            except StagemeterError as error:
                if owned:
                    raise
                kinds = ", ".join(sorted({type(call.module).__name__ for call in calls}))
                missing[f"no number includes passes of {kinds} ({role}): {error}"] = places
        return costs

    if generation:
        needed, executed = by_stage(Counts.needed_of), by_stage(Counts.of)
        whole, ran = total(needed.values()), total(executed.values())
        needed = {name: cost for name, cost in needed.items() if cost.macs or name in (PREFILL, *stages)}
    else:
        counts = count(request.calls[0])
        needed, executed = (
            {name: read(counts, *modules) for name, modules in stages.items()} for read in (Counts.needed_of, Counts.of)
        )
        whole, ran = counts.needed_of(""), counts.of("")
    return RequestCost(
        stages=needed,
        executed={name: executed[name] for name in needed},
        steps=sum(call.role == DECODE for call in request.calls) if generation else 0,
        total=whole,
        total_executed=ran,
        unsupported=frozenset(unsupported),
        missing=tuple(missing),
        uncounted=frozenset(place for places in missing.values() for place in places),
        asked=asked,
        told=told,
    )


@contextmanager
def _of_depth(model: Any, depth: int | None) -> Iterator[None]:
    """Let a model run as many layers as in the request."""
    usual = depth_of(model)
    if depth is None or depth == usual:
        yield
        return
    with replaced(model.config.get_text_config(decoder=True), "num_hidden_layers", depth):
        yield


def rest_of(call: RequestCall, stages: Mapping[str, Any]) -> str:
    """Return the stage of a call outside of the named stages: ``prefill`` where its role is among them."""
    return PREFILL if call.role in stages else call.role


def request_key(request: Request) -> Hashable:
    """Return a key that is equal for requests of equal cost: modules, shapes and plain values of all calls."""
    return tuple(_Shaped(call).key for call in request.calls)


class _Shaped:
    def __init__(self, call: RequestCall) -> None:
        self.call = call
        self._tensors = tensors_of((call.given.args, dict(call.given.kwargs)))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for tensor in self._tensors for size in tensor.shape)

    @cached_property
    def kind(self) -> Hashable:
        """A key that is equal for calls on one line: everything but sizes, with the number of new tokens."""
        given = self.call.given
        plain = tuple(
            (name, value) for name, value in given.kwargs.items() if isinstance(value, (bool, int, float, str))
        )
        new = tuple(tuple(value.shape) for name, value in given.kwargs.items() if name in _NEW and _is_tensor(value))
        kinds = tuple((tensor.dim(), tensor.dtype) for tensor in self._tensors)
        return id(self.call.module), self.call.method, self.call.role, self.call.depth, plain, new, kinds

    @property
    def key(self) -> Hashable:
        """A key that is equal for calls of equal cost."""
        return self.kind, self.sizes


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _cost_of_all(count: Callable[[RequestCall], Cost], calls: Sequence[RequestCall]) -> Cost:
    """Return the cost of some calls: count equal shapes once, and only a few of the calls on a line.

    Each step of decoding attends to one token more, so costs lie on a line until a sliding window is full.
    """
    groups: dict[Hashable, dict[Hashable, _Shaped]] = {}
    times: dict[Hashable, int] = {}
    for call in calls:
        shaped = _Shaped(call)
        groups.setdefault(shaped.kind, {}).setdefault(shaped.key, shaped)
        times[shaped.key] = times.get(shaped.key, 0) + 1
    costs: dict[Hashable, Cost] = {}
    for group in groups.values():
        for line in _lines(list(group.values())):
            costs |= _costs_on(count, line)
    return total(costs[key] * number for key, number in times.items())


def _lines(calls: Sequence[_Shaped]) -> Iterator[list[_Shaped]]:
    """Split calls where their sizes leave a line."""
    line: list[_Shaped] = []
    way: tuple[int, ...] | None = None
    for call in calls:
        step = _direction(line[-1], call) if line else None
        if line and way is not None and step != way:
            yield line
            line, way, step = [], None, None
        line.append(call)
        way = step if way is None else way
    if line:
        yield line


def _direction(before: _Shaped, after: _Shaped) -> tuple[int, ...]:
    change = [new - old for old, new in zip(before.sizes, after.sizes, strict=True)]
    far = gcd(*change) or 1
    return tuple(size // far for size in change)


def _costs_on(count: Callable[[RequestCall], Cost], line: Sequence[_Shaped]) -> dict[Hashable, Cost]:
    """Return the cost of each call on a line: interpolate between two where two more confirm the line."""
    if len(line) > _FEW:
        first, second, middle, last = line[0], line[1], line[(len(line) + 1) // 2], line[-1]
        ends = {call.key: count(call.call) for call in (first, second, middle, last)}
        moving = next(place for place, size in enumerate(first.sizes) if size != second.sizes[place])
        near, far = ends[first.key], ends[second.key]

        def between(call: _Shaped) -> Cost | None:
            step, whole = (other.sizes[moving] - first.sizes[moving] for other in (call, second))
            changes = [step * (getattr(far, name) - getattr(near, name)) for name in QUANTITIES]
            if any(change % whole for change in changes):
                return None
            return near + Cost(*(change // whole for change in changes))

        if between(middle) == ends[middle.key] and between(last) == ends[last.key]:
            found = {call.key: between(call) for call in line}
            whole = {key: cost for key, cost in found.items() if cost is not None}
            if len(whole) == len(found):
                return whole
        return {call.key: ends.get(call.key) or count(call.call) for call in line}
    return {call.key: count(call.call) for call in line}
