"""What families that read pages have in common: stages made of operators, and passes of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stagemeter.models.blocks import Operator, sum_of, working_set
from stagemeter.models.decoder import Decoder
from stagemeter.models.decoder_stages import whole_pass
from stagemeter.models.family import CacheRecorder, Runner, Stage, StageParameters, Variables
from stagemeter.workload import Workload

Architecture = TypeVar("Architecture")


def page_stage(
    name: str,
    title: str,
    modules: tuple[str, ...],
    operators: Callable[[Architecture, Variables], list[Operator]],
    parameters: Callable[[Architecture], int],
    variables: Mapping[str, str],
    calls: Callable[[Architecture, Workload], list[Variables]],
    run: Callable[[Any, Architecture, Workload], None],
) -> Stage[Architecture]:
    """Make a stage that runs once for the pages of a batch, and whose every parameter is used.

    Parameters
    ----------
    name, title : str
        Name of the stage, and what it does in a few words.
    modules : tuple of str
        The modules that run in it and whose parameters belong to it.
    operators : callable
        Operators of one call from its variables.
    parameters : callable
        Parameters by closed form.
    variables : mapping
        The variables and what they mean.
    calls : callable
        The variables of each call that a workload makes.
    run : callable
        Runs the modules, given the model and its sizes, on inputs of the shapes that a workload has.
    """

    def all_used(sizes: Architecture) -> StageParameters:
        number = parameters(sizes)
        return StageParameters(total=number, active=number)

    return Stage(
        name=name,
        title=title,
        modules=modules,
        owns=modules,
        parameters=all_used,
        variables=variables,
        calls=calls,
        cost=lambda sizes, values: sum_of(operators(sizes, values)),
        working_set=lambda sizes, values: working_set(operators(sizes, values)),
        run=lambda model, sizes, workload, recorder: run(model, sizes, workload),
    )


def page_passes(
    decoder_of: Callable[[Architecture], Decoder],
    page_of: Callable[[Any, Architecture, Workload], Mapping[str, Any]],
) -> dict[str, Runner]:
    """Make the passes of the whole model: over a page and its prompt, and over one new token.

    Parameters
    ----------
    decoder_of : callable
        The decoder of an architecture.
    page_of : callable
        What the model takes of the pages of a batch beside the tokens: pixels and the like.
    """

    def forward(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        page = page_of(model, sizes, workload)
        if workload.prompt_tokens < workload.image_tokens:
            # The length was set by hand, and the image does not fit in: both halves of the pass, one after the other.
            model.model.get_image_features(**page)
            page = {}
        whole_pass(model, decoder_of(sizes), workload.batch_size, workload.prompt_tokens, 0, recorder, page)

    def decode(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        whole_pass(model, decoder_of(sizes), workload.batch_size, 1, workload.decode_context - 1, recorder)

    return {"forward": forward, "decode": decode}
