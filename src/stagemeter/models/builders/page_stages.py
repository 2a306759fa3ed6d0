"""Stages over pages, and passes of whole models that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from stagemeter.core.cost import Cost, total
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, sum_of, working_set
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import whole_pass
from stagemeter.models.family import CacheRecorder, ModelForm, Runner, Stage, StageParameters, Variables

Architecture = TypeVar("Architecture")
#: Arguments of a module, by position or by name, from the model, its sizes and a workload.
Inputs = Callable[[Any, Any, Workload], tuple[Any, ...] | Mapping[str, Any]]


class Calls(NamedTuple):
    """Variables of a stage's closed form with their meanings, and their values for each call of a workload."""

    variables: Mapping[str, str]
    of: Callable[[Any, Workload], list[Variables]]

    def unless_cached(self, sizes: Any, workload: Workload) -> list[Variables]:
        """Return the variables of each call; none if the cache holds the page's tokens."""
        return [] if workload.page_cached else self.of(sizes, workload)


#: One call over all pages of a batch.
PAGES = Calls({"views": "pages: batch_size"}, lambda sizes, workload: [{"views": workload.batch_size}])


@dataclass(frozen=True, slots=True)
class Needed(Generic[Architecture]):
    """What the model needs in a stage where transformers executes other work.

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
            cost=lambda sizes, values: sum_of(self.operators(sizes, values)),
            working_set=lambda sizes, values: working_set(self.operators(sizes, values)),
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

    def cost(sizes: Architecture, values: Variables) -> Cost:
        return sum_of(operators(sizes, values))

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
        working_set=lambda sizes, values: working_set(operators(sizes, values)),
        run=run_stage,
        model=model,
        execution=execution,
    )


def run_module(model: Any, name: str, passed: tuple[Any, ...] | Mapping[str, Any]) -> None:
    """Run a module of a model on arguments by position or by name."""
    module = model.get_submodule(name)
    module(*passed) if isinstance(passed, tuple) else module(**passed)


def page_tokens(model: Any, workload: Workload) -> Any:
    """Return the prompts of a batch, which start with the tokens of the page."""
    import torch

    text = [0] * (workload.prompt_tokens - workload.image_tokens)
    kind = "image" if workload.video_frames is None else "video"
    row = [getattr(model.config, f"{kind}_token_id")] * workload.image_tokens + text
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
        if page and (workload.prompt_tokens < workload.image_tokens or len(passes) > 1):
            # The page does not fit a length that the user set, or a chunk: run both halves of the pass in turn.
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
