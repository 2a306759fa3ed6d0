"""Closed forms as data: coefficients that evaluate any other workload without the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, cast

from stagemeter.core.cost import QUANTITIES, ZERO, Cost, sum_of_steps, total
from stagemeter.core.polynomial import Polynomial, variables
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import larger, smaller
from stagemeter.models.chunks import sums_over_chunks
from stagemeter.models.family import EXPERTS_READ, YIELDS, Family, Form, Stage, Variables, unless_joined
from stagemeter.models.lora import Adapter


def stage_cost(stage: Stage[Any], architecture: Any, workload: Workload) -> Cost:
    """Return the cost of what transformers executes in a stage of a workload, or raise ValueError without a form."""
    return form_cost(stage, architecture, workload)


def needed_cost(stage: Stage[Any], architecture: Any, workload: Workload) -> Cost:
    """Return the cost of what the model needs in a stage of a workload, or raise ValueError without a form."""
    return form_cost(stage.needed, architecture, workload)


def form_cost(form: Form[Any], architecture: Any, workload: Workload) -> Cost:
    """Return the cost of all calls of a closed form that a workload makes."""
    cost = _formula(form)
    return total(cost(architecture, variables) for variables in form.calls(architecture, workload))


def unscored_prefill_cost(form: Form[Any], architecture: Any, workload: Workload) -> Cost:
    """Return the cost of a prefill that yields no token: the output head does not run."""
    cost = _formula(form)
    return total(cost(architecture, _unscored(variables)) for variables in form.calls(architecture, workload))


def pass_variables(form: Form[Any], architecture: Any, workload: Workload, is_last: bool) -> list[Variables]:
    """Return the variables of the calls of one pass over a prompt, which yields a token if it is the last one."""
    calls = form.calls(architecture, workload)
    return calls if is_last else list(map(_unscored, calls))


def _unscored(variables: Variables) -> Variables:
    return {**variables, YIELDS: 0} if YIELDS in variables else variables


def adapter_cost(stage: Stage[Any], architecture: Any, adapter: Adapter | None, workload: Workload) -> Cost:
    """Return what transformers executes of a LoRA adapter in a stage of a workload; zero beside no layer."""
    return _adapter_cost(stage, architecture, adapter, workload)


def needed_adapter_cost(stage: Stage[Any], architecture: Any, adapter: Adapter | None, workload: Workload) -> Cost:
    """Return the cost of a LoRA adapter where the stage runs as the model needs; zero if it stands beside no layer."""
    return _adapter_cost(stage.needed, architecture, adapter, workload)


def _adapter_cost(form: Form[Any], architecture: Any, adapter: Adapter | None, workload: Workload) -> Cost:
    cost = form.adapter
    if adapter is None or cost is None:
        return ZERO
    return total(cost(architecture, variables, adapter) for variables in form.calls(architecture, workload))


def _formula(form: Form[Any]) -> Callable[[Any, Variables], Cost]:
    if form.cost is None:
        raise ValueError(f"{getattr(form, 'name', 'the stage')} has no closed form")
    return form.cost


def decode_span(workload: Workload) -> tuple[int, int]:
    """Return the contexts of the first and the last decode step; they are equal for one step or none."""
    first = workload.prompt_tokens + 1
    return first, max(first, workload.prompt_tokens + workload.decode_steps)


def coefficients(family: Family[Any], architecture: Any) -> dict[str, Any]:
    """Write the closed forms of a model as polynomials.

    Returns
    -------
    dict
        ``architecture``, the sizes that variables follow from; ``stages``, what the model needs in each; and
        ``executed``, what transformers executes in those where it differs. Each stage has ``variables`` with their
        meanings, and ``quantities``: for each field of `stagemeter.core.cost.Cost` a list of terms. A term is a
        ``coefficient`` and the ``powers`` of the variables that multiply it. A quantity is the sum of its terms over
        the calls that a workload makes. See `evaluate`.
    """

    def written(form: Form[Any]) -> dict[str, Any]:
        quantities = _terms(form, architecture)
        used = {name for terms in quantities.values() for term in terms for name in term["powers"]}
        # These sizes need no others: a model without a window has no variable of one.
        meanings = {name: meaning for name, meaning in form.variables.items() if name in used}
        return {"variables": meanings, "quantities": quantities}

    return {
        "architecture": _plain(asdict(architecture)),
        "stages": {stage.name: written(stage.needed) for stage in family.stages},
        "executed": {stage.name: written(stage) for stage in family.stages if stage.model is not None},
    }


def form_in(closed_form: Mapping[str, Any], stage: Stage[Any]) -> Form[Any]:
    """Return the form of a stage that the ``stages`` of a report hold; reports of 1.x hold what is executed."""
    return stage if closed_form.get("executed") is None else stage.needed


def evaluate(closed_form: Mapping[str, Any], stage: str, variables: Variables) -> Cost:
    """Evaluate a report's ``closed_form`` for one call of a stage; a missing stage or variable raises ValueError."""
    stages = closed_form["stages"]
    if stage not in stages:
        raise ValueError(f"unknown stage {stage!r}; the closed form holds {', '.join(stages)}")
    # Earlier reports have another name for the tokens of an encoder's output.
    if "encoder_tokens" in variables:
        variables = {"source": variables["encoder_tokens"], **variables}
    # Gemma 4's halved a causal prompt of one token, too.
    if "tokens" in variables:
        variables = {"single": (variables["tokens"] == 1) * 1, **variables}
    missing = [name for name in stages[stage]["variables"] if name not in variables]
    if missing:
        raise ValueError(f"the closed form of {stage} needs a value for {', '.join(missing)}")
    # Earlier reports lack the quantity of quantized weights.
    quantities = stages[stage]["quantities"]
    cost = Cost(**{name: sum(_value(term, variables) for term in quantities.get(name, ())) for name in QUANTITIES})
    return unless_joined(cost, variables)


def evaluate_workload(
    closed_form: Mapping[str, Any], family: Family[Any], workload: Workload, executed: bool = False
) -> dict[str, Cost]:
    """Evaluate all stages of a report's closed form at another workload, without the model.

    Return costs by stage: ``decode`` for one step at the workload's ``decode_context``, ``decode_total`` for all steps.
    Tokens and batch of the workload may be arrays; costs are arrays then. They are of what the report's ``stages``
    hold, or of what is `executed`.
    """
    return evaluate_both(closed_form, family, workload)[executed]


def evaluate_both(
    closed_form: Mapping[str, Any], family: Family[Any], workload: Workload, architecture: Any = None
) -> tuple[dict[str, Cost], dict[str, Cost]]:
    """Evaluate what the report's ``stages`` hold, and what is executed, see `evaluate_workload`.

    Reading the `architecture` from the report takes time, so that many evaluations share one.
    """
    if architecture is None:
        architecture = family.architecture_from_sizes(closed_form["architecture"])
    quantities = attrgetter(*QUANTITIES)

    def costs(stages: Mapping[str, Any], forms: Mapping[str, Form[Any]]) -> dict[str, Cost]:
        def cost(stage: str, at: Workload, yields: bool = True) -> Cost:
            if stage == PREFILL and at.chunk_tokens is not None:
                return Cost(*sums_over_chunks(lambda one, last: quantities(cost(stage, one, last)), at))
            calls = pass_variables(forms[stage], architecture, at, yields)
            return total(evaluate({"stages": stages}, stage, variables) for variables in calls)

        found = {stage: cost(stage, workload) for stage in forms}
        if DECODE in forms:
            bends = forms[DECODE].bends(architecture, workload)
            found[DECODE_TOTAL] = all_steps(lambda at: cost(DECODE, at), workload, bends)
        return found

    needed = costs(closed_form["stages"], {stage.name: form_in(closed_form, stage) for stage in family.stages})
    # Most stages have one form, which is both.
    apart = closed_form.get("executed") or {}
    return needed, needed | costs(apart, {stage.name: stage for stage in family.stages if stage.name in apart})


def all_steps(step: Callable[[Workload], Cost], workload: Workload, bends: Iterable[int]) -> Cost:
    """Return the cost of all decode steps of a workload, whose tokens may be arrays; zero without steps.

    `step` returns the cost of one step, from the workload at the context of the step. The steps attend to
    ``prompt_tokens + 1`` up to ``prompt_tokens + new_tokens - 1`` tokens. `bends` are the contexts at which the growth
    of the cost changes, see `stagemeter.models.family.Stage`.
    """
    first, last = workload.prompt_tokens + 1, workload.prompt_tokens + workload.decode_steps
    # A bend that no step reaches moves to the first or the last step, where it adds nothing.
    inside = [larger(first, smaller(bend, last)) for bend in bends]
    # Exchange neighbours, which also sorts arrays element by element.
    for end in range(len(inside) - 1, 0, -1):
        for place in range(end):
            one, other = inside[place : place + 2]
            inside[place : place + 2] = smaller(one, other), larger(one, other)
    contexts = [first, *inside, last]
    costs = [step(replace(workload, decode_context=context)) for context in contexts]
    whole = ZERO
    for number, (start, end) in enumerate(pairwise(contexts)):
        whole += sum_of_steps(costs[number], costs[number + 1], end - start + 1)
        if number + 2 < len(contexts):
            # The next stretch includes the step where both meet.
            whole += costs[number + 1] * -1
    return whole


def bytes_of_an_expert(closed_form: Mapping[str, Any], stage: str, item_size: Any) -> Any:
    """Return the bytes of weights that a pass reads per expert of a layer, over all layers; 0 without experts.

    `item_size` is the bytes of a weight that is not quantized.
    """
    quantities = closed_form["stages"][stage]["quantities"]

    def of_experts(quantity: str) -> int:
        return sum(term["coefficient"] for term in quantities.get(quantity, ()) if EXPERTS_READ in term["powers"])

    return of_experts("weight_reads") * item_size + of_experts("packed_weight_bytes")


def _plain(sizes: Any) -> Any:
    """Turn tuples into lists, so that JSON does not change a report."""
    if isinstance(sizes, dict):
        return {name: _plain(size) for name, size in sizes.items()}
    return [_plain(size) for size in sizes] if isinstance(sizes, tuple) else sizes


def _value(term: Mapping[str, Any], variables: Variables) -> int:
    product = term["coefficient"]
    for name, power in term["powers"].items():
        product = product * variables[name] ** power
    return cast(int, product)


def _terms(form: Form[Any], architecture: Any) -> dict[str, list[dict[str, Any]]]:
    # The closed forms only add and multiply, so polynomials pass through them as integers do.
    names = list(form.variables)
    cost: Any = _formula(form)(architecture, cast(Variables, dict(zip(names, variables(len(names)), strict=True))))
    terms = {}
    for quantity in QUANTITIES:
        value = getattr(cost, quantity)
        coefficients = value.terms if isinstance(value, Polynomial) else {(0,) * len(names): value}
        terms[quantity] = [
            {
                "coefficient": coefficient,
                "powers": {name: power for name, power in zip(names, powers, strict=True) if power},
            }
            for powers, coefficient in sorted(coefficients.items(), reverse=True)
            if coefficient
        ]
    return terms
