"""What a forward pass or a generation costs and takes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stagemeter.cost import Cost, total
from stagemeter.counting.events import Counts
from stagemeter.modules.run import Pass, count_from_shapes
from stagemeter.modules.shapes import on_meta, tensors_of

PREFILL, DECODE, DECODE_TOTAL, TOTAL = "prefill", "decode", "decode_total", "total"

#: Arguments of a call on the meta device.
Bare = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Request:
    """A forward pass, or a generation: the calls of the model that it was made of.

    Attributes
    ----------
    bare : list
        Arguments of each call on the meta device.
    seconds : list of float
        Of each call; empty unless they are wanted.
    stage_seconds : dict
        Of each stage, in the first call.
    error : Exception or None
        What went wrong with noting arguments.
    """

    bare: list[Bare] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None


class RequestRecorder:
    """Runs the calls of one request, and notes what is wanted of them.

    Parameters
    ----------
    stages : mapping
        Stages with a module or several, timed in the first call.
    times : bool
        Whether calls are timed.
    place : torch.device
        Where the model runs: waited for before a time is taken.
    """

    def __init__(self, stages: Mapping[str, Sequence[nn.Module]], times: bool, place: torch.device) -> None:
        self.request = Request()
        self._stages, self._times, self._place = stages, times, place
        self._running = False

    def run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call of the model; one inside of another is part of that."""
        if self._running:
            return call(*args, **kwargs)
        try:
            self.request.bare.append(on_meta((args, kwargs)))
        except Exception as error:
            self.request.error = error
        self._running = True
        try:
            if not self._times:
                return call(*args, **kwargs)
            with self._timed_stages() if not self.request.seconds else ExitStack():
                began = self._now()
                out = call(*args, **kwargs)
                self.request.seconds.append(self._now() - began)
            return out
        finally:
            self._running = False

    @contextmanager
    def _timed_stages(self) -> Iterator[None]:
        began: dict[str, float] = {}
        spent = self.request.stage_seconds

        def enter(name: str) -> None:
            began[name] = self._now()

        def leave(name: str) -> None:
            if name in began:
                spent[name] = spent.get(name, 0.0) + self._now() - began.pop(name)

        with ExitStack() as stack:
            for name, modules in self._stages.items():
                for module in modules:
                    before = module.register_forward_pre_hook(lambda m, args, name=name: enter(name))
                    after = module.register_forward_hook(lambda m, args, out, name=name: leave(name), always_call=True)
                    stack.callback(before.remove)
                    stack.callback(after.remove)
            yield

    def _now(self) -> float:
        if self._place.type == "cuda":
            torch.cuda.synchronize(self._place)
        return time.perf_counter()


@dataclass(frozen=True)
class RequestCost:
    """What a request costs.

    Attributes
    ----------
    stages : dict of str to Cost
        Cost of each stage. Of a generation ``prefill`` is what the stages leave of the first call, and ``decode_total``
        all steps of decoding.
    steps : int
        Steps of decoding.
    total : Cost
        All of it.
    unsupported : frozenset of str
        Operators without a formula that ran: they are in no number.
    """

    stages: Mapping[str, Cost]
    steps: int
    total: Cost
    unsupported: frozenset[str]


def request_cost(
    bare: nn.Module, stages: Mapping[str, Sequence[str]], request: Request, generation: bool
) -> RequestCost:
    """Count a request from shapes alone.

    Parameters
    ----------
    bare : torch.nn.Module
        The model without weights.
    stages : mapping
        Names of the modules of each stage.
    request : Request
        With arguments of its calls.
    generation : bool
        Whether the first call is a prefill, and the others are steps of decoding.

    Raises
    ------
    StagemeterError
        If the model fails on shapes alone.
    """
    unsupported: set[str] = set()

    def count(number: int) -> Counts:
        args, kwargs = request.bare[number]
        # A copy: counting a call fills its cache.
        args, kwargs = on_meta((args, kwargs))
        counts = count_from_shapes(bare, Pass(args, kwargs, False, None, {})).forward
        unsupported.update(counts.unsupported_of(""))
        return counts

    first = count(0)
    costs = {name: first.of(*modules) for name, modules in stages.items()}
    if not generation:
        return RequestCost(costs, 0, first.of(""), frozenset(unsupported))
    prefill = first.of("") + -1 * total(costs.values())
    steps = len(request.bare) - 1
    decode = total(_steps(lambda number: count(number).of(""), request.bare))
    costs |= {PREFILL: prefill} | ({DECODE_TOTAL: decode} if steps else {})
    return RequestCost(costs, steps, first.of("") + decode, frozenset(unsupported))


def _steps(count: Callable[[int], Cost], calls: Sequence[Bare]) -> list[Cost]:
    """Cost of each step of decoding.

    Each step attends to one token more than the one before, so that costs are an arithmetic series, which three of them
    tell. Where they do not lie on a line, as with sliding windows, every step is counted.
    """
    last = len(calls) - 1
    if last < 1:
        return []
    if last <= 3:
        return [count(number) for number in range(1, last + 1)]
    middle = (last + 1) // 2
    ends = {number: count(number) for number in (1, 2, middle, last)}
    step = ends[2] + -1 * ends[1]
    if all(ends[number] == ends[1] + (number - 1) * step for number in (middle, last)):
        return [ends[1] + (number - 1) * step for number in range(1, last + 1)]
    counted: dict[Any, Cost] = {}
    costs = []
    for number in range(1, last + 1):
        shapes = _shapes(calls[number])
        if shapes not in counted:
            counted[shapes] = ends[number] if number in ends else count(number)
        costs.append(counted[shapes])
    return costs


def request_shapes(request: Request) -> Hashable:
    """What two requests have in common that cost the same: how many calls, and the shapes of the first and the last."""
    return len(request.bare), _shapes(request.bare[0]), _shapes(request.bare[-1])


def _shapes(call: Bare) -> Hashable:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(call))
