"""Stages over pages, and passes of whole models that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from stagemeter.core.cost import Cost, total
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, sum_of, working_set
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import whole_pass
from stagemeter.models.family import (
    JOINED,
    CacheRecorder,
    ModelForm,
    Runner,
    Stage,
    StageParameters,
    Variables,
    own_variables,
    unless_joined,
)

Architecture = TypeVar("Architecture")
#: Arguments of a module, by position or by name, from the model, its sizes and a workload.
Inputs = Callable[[Any, Any, Workload], tuple[Any, ...] | Mapping[str, Any]]


class Calls(NamedTuple):
    """Variables of a stage's closed form with their meanings, and their values for each call of a workload.

    With `page_by_page`, `of` knows requests of one page alone. Further pages then are terms of the same call.
    """

    variables: Mapping[str, str]
    of: Callable[[Any, Workload], list[Variables]]
    page_by_page: bool = False

    def unless_cached(self, sizes: Any, workload: Workload) -> list[Variables]:
        """Return the variables of each call; none if the cache holds the tokens of all pages."""
        if workload.page_cached:
            return []
        if not self.page_by_page or workload.further_pages is None:
            return self.of(sizes, workload)
        first, *further = (self.of(sizes, one) for one in batches_of_pages(workload))
        return [*first, *({**call, JOINED: 1} for calls in further for call in calls)]


def batches_of_pages(workload: Workload) -> list[Workload]:
    """Return requests of one page that together have the pages of a batch on which an encoder runs."""
    return [replace(one, batch_size=one.batch_size * times) for times, one in workload.of_each_page]


def image_tokens_of(workload: Workload) -> int:
    """Return the tokens of all pages of a batch on which an encoder runs."""
    return sum(one.batch_size * one.image_tokens for one in batches_of_pages(workload))


#: One call over all pages of a batch.
PAGES = Calls({"views": "pages: batch_size"}, lambda sizes, workload: [{"views": workload.batch_size}], True)


@dataclass(frozen=True, slots=True)
class Needed(Generic[Architecture]):
    """The model's work in a stage where transformers executes other work.

    `because` is why, as a clause after "transformers"; `operators` are those of one call. None for `calls`: they have
    the variables of what is executed.
    """

    because: str
    operators: Callable[[Architecture, Variables], list[Operator]]
    calls: Calls | None = None

    def form(self, executed: Calls) -> ModelForm[Architecture]:
        """Return the closed form; `executed` has the variables of what is executed."""
        calls = self.calls or executed
        return ModelForm(
            variables=calls.variables,
            calls=calls.unless_cached,
            cost=_cost_of(self.operators),
            working_set=_working_set_of(self.operators),
        )


def page_stage(
    name: str,
    title: str,
    modules: tuple[str, ...],
    operators: Callable[[Architecture, Variables], list[Operator]],
    parameters: Callable[[Architecture], int],
    calls: Calls,
    inputs: Inputs | None = None,
    run: Callable[[Any, Architecture, Workload], None] | None = None,
    unused: Callable[[Architecture], int] = lambda sizes: 0,
    needed: Needed[Architecture] | None = None,
) -> Stage[Architecture]:
    """Make a stage over the pages of a batch.

    Parameters
    ----------
    title : str
        What the stage does, in a few words.
    modules : tuple of str
        Modules that run in the stage, and whose parameters belong to it.
    operators : callable
        Operators of one call, from its variables.
    inputs, run : callable, optional
        Arguments of the first module, if it alone runs, and once; else a function that runs the modules.
    unused : callable
        Parameters that no pass reads.
    needed : Needed, optional
        What the model needs, where transformers executes other work.
    """
    model = needed.form(calls) if needed else None

    cost = _cost_of(operators)

    def execution(sizes: Architecture, workload: Workload) -> tuple[str, ...]:
        if needed is None or model is None:
            return ()
        executed = total(cost(sizes, values) for values in calls.unless_cached(sizes, workload))
        least = total(model.cost(sizes, values) for values in model.calls(sizes, workload))
        return (needed.because,) if executed.macs != least.macs else ()

    def by_use(sizes: Architecture) -> StageParameters:
        total, idle = parameters(sizes), unused(sizes)
        return StageParameters(total=total, active=total - idle, unused=idle)

    def run_stage(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        if workload.page_cached:
            return
        if run is not None:
            run(model, sizes, workload)
        elif inputs is not None:
            run_module(model, modules[0], inputs(model, sizes, workload))

    return Stage(
        name=name,
        title=title,
        modules=modules,
        owns=modules,
        parameters=by_use,
        variables=calls.variables,
        calls=calls.unless_cached,
        cost=cost,
        working_set=_working_set_of(operators),
        run=run_stage,
        model=model,
        execution=execution,
    )


def _cost_of(
    operators: Callable[[Architecture, Variables], list[Operator]],
) -> Callable[[Architecture, Variables], Cost]:
    def cost(sizes: Architecture, values: Variables) -> Cost:
        return unless_joined(sum_of(operators(sizes, own_variables(values))), values)

    return cost


def _working_set_of(
    operators: Callable[[Architecture, Variables], list[Operator]],
) -> Callable[[Architecture, Variables], int]:
    return lambda sizes, values: working_set(operators(sizes, own_variables(values)))


def run_module(model: Any, name: str, passed: tuple[Any, ...] | Mapping[str, Any]) -> None:
    """Run a module of a model on arguments by position or by name."""
    module = model.get_submodule(name)
    module(*passed) if isinstance(passed, tuple) else module(**passed)


def page_tokens(model: Any, workload: Workload) -> Any:
    """Return the new tokens of the prompts of a batch, which start with those of the pages."""
    import torch

    tokens = sum(times * one.image_tokens for times, one in workload.of_each_page)
    kind = "image" if workload.video_frames is None else "video"
    row = [getattr(model.config, f"{kind}_token_id")] * tokens + [0] * (workload.computed_tokens - tokens)
    return torch.tensor([row] * workload.batch_size, device=model.device)


def page_passes(
    decoder_of: Callable[[Architecture], Decoder],
    page_of: Callable[[Any, Architecture, Workload], Mapping[str, Any]],
    keeps_everything: bool = False,
    named_tokens: bool = False,
    see: Callable[[Any, Mapping[str, Any]], None] | None = None,
    step_of: Callable[[Any, Architecture, Workload], Mapping[str, Any]] = lambda model, sizes, workload: {},
) -> dict[str, Runner]:
    """Make the passes of the whole model: over a page and its prompt, and over one new token.

    Parameters
    ----------
    page_of, step_of : callable
        Arguments besides the tokens: for the pages of a batch, such as pixels, and for one new token.
    named_tokens : bool
        Whether it matters which tokens stand for a page.
    see : callable, optional
        Runs everything before the decoder on a page. By default, transformers' own code makes the embeddings.
    """

    def run(
        model: Any,
        sizes: Architecture,
        workload: Workload,
        recorder: CacheRecorder,
        tokens: int,
        cached: int,
        page: Mapping[str, Any],
    ) -> None:
        decoder = decoder_of(sizes)
        whole_pass(model, decoder, workload, tokens, cached, recorder, page, keeps_everything)

    def forward(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        page = {} if workload.page_cached else page_of(model, sizes, workload)
        passes = workload.prefill_passes
        tokens = sum(times * one.image_tokens for times, one in workload.of_each_page)
        if page and (workload.computed_tokens < tokens or len(passes) > 1):
            # The pages do not fit a length that the user set, or a chunk: run both halves of the pass in turn.
            if see is not None:
                see(model, page)
            else:
                features = "get_image_features" if workload.video_frames is None else "get_video_features"
                getattr(model.model, features)(**page)
            page = {}
        elif page and named_tokens:
            page = {**page, "input_ids": page_tokens(model, workload)}
        for one in passes:
            run(model, sizes, one, recorder, one.computed_tokens, one.past_tokens, page)

    def decode(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        step = step_of(model, sizes, workload)
        run(model, sizes, workload, recorder, 1, workload.decode_context - 1, step)

    return {"forward": forward, "decode": decode}
