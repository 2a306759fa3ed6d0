"""The three tiers, ways of counting a stage: isolated, extracted, analytic."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stagemeter.core.cost import ZERO, Cost, sum_of_steps
from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import (
    adapter_cost,
    all_steps,
    decode_span,
    stage_cost,
)
from stagemeter.models.family import Family, Runner, Stage
from stagemeter.models.lora import Adapter

if TYPE_CHECKING:
    from stagemeter.counting.events import Counts

#: Most steps to count to find out how the cost of a step grows.
_MOST_STEPS = 64

logger = logging.getLogger(__name__)

ISOLATED = "isolated"
EXTRACTED = "extracted"
ANALYTIC = "analytic"
#: In order of preference.
TIERS = (ISOLATED, EXTRACTED, ANALYTIC)


@dataclass(frozen=True)
class StageCount:
    """One stage, counted in one way.

    Attributes
    ----------
    cost : Cost
        One pass; of ``decode`` one step at the workload's context.
    request_cost : Cost or None
        Cost of the stage in the whole request, where the tier gives it; of ``decode`` all steps.
    operators, unsupported : dict, Counter
        Cost by operator, empty for closed forms; and calls of operators without a formula.
    steps : dict
        Of ``decode``, counted steps by the context they attend to.
    adapter, request_adapter : Cost or None
        The adapter's part, counted apart: one pass, and the whole request.
    """

    cost: Cost
    request_cost: Cost | None = None
    operators: Mapping[str, Cost] = field(default_factory=dict)
    unsupported: Counter[str] = field(default_factory=Counter)
    steps: Mapping[int, Cost] = field(default_factory=dict)
    adapter: Cost = ZERO
    request_adapter: Cost | None = ZERO


@dataclass
class Tier:
    """The counts of one tier.

    `failures` holds the reasons of stages without a count. `passes` holds counts per module of each pass of the whole
    model; it is empty where the tier makes none.
    """

    name: str
    stages: dict[str, StageCount] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    passes: dict[str, Counts] = field(default_factory=dict)


#: Counts one run at a workload.
PassCounter = Callable[[Runner, Workload], "Counts"]


@contextmanager
def pass_counter(model: Any, architecture: Any, walk_every_layer: bool = False) -> Iterator[PassCounter]:
    """Yield a function that counts runs of one model at a workload, each on its own.

    `architecture` holds the model's sizes; `walk_every_layer` is that of `stagemeter.counting.counter.CostCounter`.
    """
    import torch

    from stagemeter.counting.counter import CostCounter

    with torch.no_grad(), CostCounter(model, walk_every_layer) as counter:

        def count(run: Runner, workload: Workload) -> Counts:
            counter.restart()
            run(model, architecture, workload, counter)
            return counter.counts()

        yield count


def isolated_tier(
    stages: Iterable[Stage[Any]], model: Any, architecture: Any, workload: Workload, walk_every_layer: bool = False
) -> Tier:
    """Count stages by running the modules of each alone, on inputs of the workload's shapes."""
    tier = Tier(ISOLATED)
    with pass_counter(model, architecture, walk_every_layer) as count:
        for stage in stages:
            _attempt(tier, stage.name, partial(_isolated, stage, architecture, workload, count))
    return tier


def _isolated(stage: Stage[Any], architecture: Any, workload: Workload, count: PassCounter) -> StageCount:
    counts = count(stage.run, workload)
    cost = request_cost = counts.of(*stage.modules)
    adapter = request_adapter = counts.apart_of(*stage.modules)
    steps = {}
    if stage.whole_pass == "decode":
        steps, beside = {workload.decode_context: cost}, {workload.decode_context: adapter}

        def step(context: int) -> Cost:
            if context not in steps:
                one = count(stage.run, replace(workload, decode_context=context))
                steps[context], beside[context] = one.of(*stage.modules), one.apart_of(*stage.modules)
            return steps[context]

        for context in _decode_contexts(stage, architecture, workload):
            step(context)
        if stage.cost is None:
            # Without a closed form, the contexts where the growth of a step changes are unknown.
            find_bends(step, *decode_span(workload))
        request_cost, request_adapter = _decode_total(steps, workload), _decode_total(beside, workload)
    operators, unsupported = counts.operators(*stage.modules), counts.unsupported_of(*stage.modules)
    return StageCount(cost, request_cost, operators, unsupported, steps, adapter, request_adapter)


def _decode_contexts(stage: Stage[Any], architecture: Any, workload: Workload) -> list[int]:
    """Return the contexts whose steps give the total: the first, the last, and those where the growth changes."""
    first, last = decode_span(workload)
    return sorted({first, last, *(bend for bend in stage.bends(architecture, workload) if first < bend < last)})


def _decode_total(step_at: Mapping[int, Cost], workload: Workload) -> Cost:
    """Return the cost of all decode steps of a workload from counted steps.

    This sum is not that of the closed forms, `stagemeter.models.closed_form.all_steps`, so that either tier checks the
    other's. `step_at` is the cost of a step by the context it attends to, at least at `_decode_contexts`. The steps
    attend to ``prompt_tokens + 1`` up to ``prompt_tokens + new_tokens - 1`` tokens.
    """
    if workload.decode_steps == 0:
        return ZERO
    first, last = decode_span(workload)
    contexts = sorted(context for context in step_at if first <= context <= last)
    # From each context to the next, the cost grows by the same amount each step; a sum includes both ends.
    whole = step_at[first]
    for start, end in pairwise(contexts):
        whole += sum_of_steps(step_at[start], step_at[end], end - start + 1) + step_at[start] * -1
    return whole


def find_bends(step: Callable[[int], Cost], first: int, last: int) -> None:
    """Count steps until the cost grows evenly between any two neighbours, judged by the step in the middle.

    `step` gives the cost of a decode step by its context, and keeps its counts. `first` and `last` are the contexts of
    the first and the last step. Growth that changes too often for this raises StagemeterError.
    """
    left = [(first, last)]
    counted = 0
    while left:
        start, end = left.pop()
        middle = (start + end) // 2
        if end - start < 2:
            continue  # There is no step between them.
        counted += 1
        if counted > _MOST_STEPS:
            raise StagemeterError(
                f"new_tokens: the cost of a decode step does not grow evenly between {first:,} and {last:,} tokens of "
                f"context, and {_MOST_STEPS} steps between them do not show how. Ask for fewer new tokens"
            )
        here, ahead = middle - start, end - middle
        # Compared without fractions.
        if step(start) * ahead + step(end) * here != step(middle) * (end - start):
            left += [(start, middle), (middle, end)]


def extracted_tier(
    family: Family[Any], model: Any, architecture: Any, workload: Workload, walk_every_layer: bool = False
) -> Tier:
    """Count passes of the whole model, and split them by module."""
    tier = Tier(EXTRACTED)
    with pass_counter(model, architecture, walk_every_layer) as count:
        for name, run in family.whole_passes.items():
            stages = [stage for stage in family.stages if stage.whole_pass == name]
            try:
                tier.passes[name] = count(run, workload)
            except Exception as error:  # Reported per stage, and the other passes and tiers go on.
                for stage in stages:
                    _fail(tier, stage.name, error)
                continue
            for stage in stages:
                tier.stages[stage.name] = _extracted(stage, tier.passes[name])
    return tier


def _extracted(stage: Stage[Any], counts: Counts) -> StageCount:
    cost = counts.of(*stage.modules)
    return StageCount(
        cost=cost,
        # A pass of the whole model shows one decode step, not all of them.
        request_cost=None if stage.whole_pass == "decode" else cost,
        operators=counts.operators(*stage.modules),
        unsupported=counts.unsupported_of(*stage.modules),
        adapter=counts.apart_of(*stage.modules),
        request_adapter=None if stage.whole_pass == "decode" else counts.apart_of(*stage.modules),
    )


def analytic_tier(family: Family[Any], architecture: Any, workload: Workload, adapter: Adapter | None = None) -> Tier:
    """Evaluate the closed form of every stage."""
    tier = Tier(ANALYTIC)
    for stage in family.stages:
        _attempt(tier, stage.name, partial(_analytic, stage, architecture, workload, adapter))
    return tier


def _analytic(stage: Stage[Any], architecture: Any, workload: Workload, adapter: Adapter | None) -> StageCount:
    cost, request_cost = _of_request(stage, architecture, workload, partial(stage_cost, stage, architecture))
    beside, request_beside = _of_request(
        stage, architecture, workload, partial(adapter_cost, stage, architecture, adapter)
    )
    return StageCount(cost, request_cost, adapter=beside, request_adapter=request_beside)


def _of_request(
    stage: Stage[Any], architecture: Any, workload: Workload, cost_at: Callable[[Workload], Cost]
) -> tuple[Cost, Cost]:
    """Return the cost of a stage's pass, and of all passes of a request."""
    cost = cost_at(workload)
    if stage.whole_pass != "decode":
        return cost, cost
    return cost, all_steps(cost_at, workload, stage.bends(architecture, workload))


def _attempt(tier: Tier, stage: str, count: Callable[[], StageCount]) -> None:
    """Count one stage, or record the reason of its failure, so that other stages are still counted."""
    try:
        tier.stages[stage] = count()
    except Exception as error:
        _fail(tier, stage, error)


def _fail(tier: Tier, stage: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    tier.failures[stage] = reason
    logger.warning("%s: could not be counted by the %s tier: %s", stage, tier.name, reason)
